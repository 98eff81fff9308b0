"""The relative links of the documentation, which are written so that they work in the repository.

A page links to another page, or to any other file of the repository, by its path there. The site has some pages under
other paths (`ELSEWHERE`), and holds a copy of every other file that a page links to, under `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "artifacts/README.md": "reference/run-directory.md",
    "cluster/README.md": "how-to/getting-a-cluster.md",
    "tests/fixtures/README.md": "benchmarks/reference-network.md",
}
"""Documents outside docs/ that are pages of the site, and their paths there."""

_LINK = re.compile(
    r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))"  # [text](target "title"), ![text](target)
    r"|(<(?:img|source)[^>]*?\s(?:src|srcset)=\")([^\"\s]+)(\")"  # of a picture that is drawn light and dark
)
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\S\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def documents() -> list[str]:
    """Return the paths of all documents, from the root of the repository."""
    own = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    return [*ELSEWHERE, *own]


def site_path(path: str) -> str:
    """Return the path on the site of a file of the repository."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def replace_links(text: str, replace: Callable[[str], str]) -> str:
    """Return Markdown with every target of a link outside code replaced."""
    code = [match.span() for match in _FENCE.finditer(text)]

    def new(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in code):
            return match.group()
        before, target, after = match.groups()[:3] if match.group(2) else match.groups()[3:]
        return f"{before}{replace(target)}{after}"

    return _LINK.sub(new, text)


def relative_links(document: str, text: str) -> Iterator[tuple[str, str, str]]:
    """Yield each relative link of a document: as it stands there, the path in the repository, and the anchor."""
    found: list[str] = []
    replace_links(text, lambda target: found.append(target) or target)
    for target in found:
        if re.match(r"[a-z]+:", target) is None:
            path, _, anchor = target.partition("#")
            folder = posixpath.dirname(document)
            yield target, posixpath.normpath(posixpath.join(folder, path)) if path else document, anchor


def for_the_site(document: str, text: str) -> str:
    """Return a document with links that work on the site."""
    known = {target: (path, anchor) for target, path, anchor in relative_links(document, text)}
    folder = posixpath.dirname(site_path(document))

    def replace(target: str) -> str:
        if target not in known or target.startswith("#"):
            return target
        path, anchor = known[target]
        return posixpath.relpath(site_path(path), folder or ".") + (f"#{anchor}" if anchor else "")

    return replace_links(text, replace)
