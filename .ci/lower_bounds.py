"""Print the lower bounds of pyproject.toml as constraints for pip: `pydantic>=2.7` becomes `pydantic==2.7`.

Usage: python .ci/lower_bounds.py [EXTRA ...] > constraints.txt

The requirements of the named extras are among them; those of no extra always are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def constraints(requirements: Iterable[str]) -> list[str]:
    """Return a constraint for every requirement, to the oldest version that it allows.

    Raises:
        ValueError: When a requirement has no lower bound, or one that is not inclusive.
    """
    found = []
    for line in requirements:
        requirement = Requirement(line)
        bounds = [part.version for part in requirement.specifier if part.operator in (">=", "==", "~=")]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: '{line}' has {len(bounds)} lower bounds; needed: one, as in NAME>=1.2")
        marker = f"; {requirement.marker}" if requirement.marker else ""
        found.append(f"{requirement.name}=={bounds[0]}{marker}")
    return found


def main(extras: list[str]) -> None:
    """Print the constraints of the project and of some extras."""
    import tomllib  # Python 3.11 has it

    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    print("\n".join(constraints(lines)))


if __name__ == "__main__":
    main(sys.argv[1:])
