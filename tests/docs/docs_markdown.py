"""Reading the documents: their code blocks, code spans and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        ROOT / "artifacts" / "README.md",
        ROOT / "cluster" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code in a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """Return every block of code in these languages, of all documents."""
    return [
        Block(document, text.count("\n", 0, match.start()) + 1, match.group(1), match.group(2))
        for document in DOCUMENTS
        for text in [read(document)]
        for match in _BLOCK.finditer(text)
        if match.group(1) in languages
    ]


def spans(document: str) -> list[str]:
    """Return every span of code outside blocks, its line breaks as spaces."""
    found = re.findall(r"`([^`]+)`", _BLOCK.sub("", read(document)))
    return [" ".join(span.split()) for span in found]


def anchors(document: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MkDocs both name them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", read(document)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}
