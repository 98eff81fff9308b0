"""The names of the files of a standalone folder."""

from __future__ import annotations

CODE_FILE, CARD_FILE = "model.py", "README.md"
"""The code that loads the model, and its card."""

NEW_CARD_FILE = "README.new.md"
"""The card, where one is there that was edited since it was written."""

MARK = "written by CleanAI-Ray"
"""What the first line of such code says."""

WEIGHTS_FILE, PROGRAM_FILE = "model.safetensors", "model.pt2"
"""The files that the code reads: one of the two."""

CONFIG_FILE = "config.json"
"""The configuration in a folder of transformers."""
