"""Check, before a release is built, that what names its version and its repository is about this release.

Usage: python .ci/check_release.py TAG OWNER/REPOSITORY

The tag is `v` and the version of cleanai_ray/__init__.py, CHANGELOG.md has a chapter on it, and the addresses that
PyPI will show (`project.urls`) are there and those of the repository that is released from. Until there is a repository
to release from, pyproject.toml names none.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

URLS = {
    "Repository": "",
    "Documentation": "/blob/main/docs/quickstart.md",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Issues": "/issues",
}
"""The addresses that a release has, as paths below its repository's."""


def version_of(root: Path) -> str:
    """Return the version, without importing the package."""
    text = (root / "cleanai_ray" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, flags=re.MULTILINE)
    assert found is not None, "cleanai_ray/__init__.py has no __version__"
    return found[1]


def problems(root: Path, tag: str, repository: str) -> list[str]:
    """Return a sentence for everything that is wrong."""
    version, found = version_of(root), []
    if tag != f"v{version}":
        found.append(f"the tag is '{tag}', and cleanai_ray.__version__ is '{version}'; needed: the tag 'v{version}'")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)}\b", changelog, flags=re.MULTILINE):
        found.append(f"CHANGELOG.md has no chapter '## {version}'; needed: what was under 'Unreleased', with the date")
    section = (root / "pyproject.toml").read_text(encoding="utf-8").partition("[project.urls]\n")[2].partition("\n[")[0]
    given = dict(re.findall(r'^(\w+) = "([^"]+)"', section, flags=re.MULTILINE))
    home = f"https://github.com/{repository}"
    lacking = [f'{name} = "{home}{path}"' for name, path in URLS.items() if name not in given]
    if lacking:
        found.append(f"pyproject.toml lacks addresses in [project.urls]; needed: {', '.join(lacking)}")
    wrong = [f"{name} is '{address}'" for name, address in given.items() if not f"{address}/".startswith(f"{home}/")]
    if wrong:
        found.append(f"in project.urls, {', '.join(wrong)}; needed: addresses in {home}")
    return found


def main(tag: str, repository: str) -> int:
    """Print what is wrong, and return 1 if anything is."""
    found = problems(ROOT, tag, repository)
    for sentence in found:
        print(f"release: {sentence}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
