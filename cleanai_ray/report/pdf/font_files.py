"""Font files for a PDF: DejaVu where the machine has it, else the Vera fonts that reportlab ships."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = (
    "/usr/share/fonts/truetype/dejavu",
    "/usr/share/fonts/dejavu",
    "/usr/share/fonts/dejavu-sans-fonts",
    "/usr/share/fonts/TTF",
    "/usr/local/share/fonts",
    "/Library/Fonts",
)


@dataclass(frozen=True)
class FontFiles:
    """The files of one family; `mono` is None where the machine lacks its fixed-width font."""

    regular: Path
    bold: Path
    mono: Path | None


def find_fonts() -> FontFiles:
    """Return the fonts to embed.

    DejaVu Sans descends from Bitstream Vera and has the same widths, so lines break at the same places with either.
    """
    bundled = _bundled_folder()
    regular, bold = _find("DejaVuSans.ttf"), _find("DejaVuSans-Bold.ttf")
    if regular is None or bold is None:
        regular, bold = bundled / "Vera.ttf", bundled / "VeraBd.ttf"
    return FontFiles(regular, bold, _find("DejaVuSansMono.ttf"))


def _find(name: str) -> Path | None:
    return next((path for folder in _FOLDERS if (path := Path(folder) / name).is_file()), None)


def _bundled_folder() -> Path:
    found = importlib.util.find_spec("reportlab")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "fonts"
