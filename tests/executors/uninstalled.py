"""A Python that has every dependency of the package, but not the package: neither its code nor its metadata."""

from __future__ import annotations

import site
import venv
from pathlib import Path

_OWN = ("cleanai", "__editable__")


def python_without_package(folder: Path, *missing: str) -> Path:
    """Make a virtual environment whose packages are those of this one, and return its interpreter.

    Args:
        folder: An empty folder.
        missing: Beginnings of names in site-packages that it shall lack as well, for instance `reportlab-`.
    """
    packages = folder / "packages"
    packages.mkdir()
    for source in map(Path, site.getsitepackages()):
        for entry in source.iterdir():
            if not entry.name.startswith((*_OWN, *missing)) and entry.suffix != ".pth":
                (packages / entry.name).symlink_to(entry)
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    (own / "packages.pth").write_text(str(packages))
    return folder / "venv" / "bin" / "python"
