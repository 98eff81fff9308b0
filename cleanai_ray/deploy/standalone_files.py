"""The names of the files of a standalone folder."""

from __future__ import annotations

CODE_FILE, CARD_FILE = "model.py", "README.md"
"""The code that loads the model, and its card."""

WEIGHTS_FILE, PROGRAM_FILE = "model.safetensors", "model.pt2"
"""The files that the code reads: one of the two."""
