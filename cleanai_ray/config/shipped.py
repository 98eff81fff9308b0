"""The study that is part of the package, so that `cleanai quickstart` runs wherever the package is installed."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = Path(__file__).with_name("quickstart.yaml")
"""The study file of `cleanai quickstart`; `jobs/studies/quickstart.yaml` of the repository is a link to it."""
