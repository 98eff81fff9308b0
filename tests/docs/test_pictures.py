"""Pictures are small, and those that are drawn light and dark show the same."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import repository_links
from docs_markdown import DOCUMENTS, ROOT, read
from PIL import Image

PICTURES = sorted(
    path for folder in ("docs/images", "artifacts/pictures") for path in (ROOT / folder).iterdir() if path.is_file()
)
PAIRS = sorted(
    {
        (targets[0], targets[1])
        for document in DOCUMENTS
        for picture in re.findall(r"<picture>.*?</picture>", read(document), flags=re.DOTALL)
        for targets in [[path for _, path, _ in repository_links.relative_links(document, picture)]]
    }
)


def shown(path: Path) -> object:
    """The words of an SVG in their order, or the size of another picture."""
    if path.suffix != ".svg":
        with Image.open(path) as image:
            return image.size
    root = ElementTree.parse(path).getroot()
    assert root.get("viewBox")
    return [text for element in root.iter() if not element.tag.endswith("style") for text in [element.text] if text]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_small(path: Path) -> None:
    assert path.stat().st_size < 300_000


def test_there_are_pictures_in_light_and_dark() -> None:
    assert {Path(light).stem for _, light in PAIRS} >= {"data-flow", "quickstart_light", "report_light"}


@pytest.mark.parametrize(("dark", "light"), PAIRS)
def test_light_and_dark_show_the_same(dark: str, light: str) -> None:
    assert dark != light
    assert (ROOT / dark).read_bytes() != (ROOT / light).read_bytes()
    assert shown(ROOT / dark) == shown(ROOT / light)
