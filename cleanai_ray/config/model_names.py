"""Names of models that come from another library: `timm:NAME` and `hf:NAME`, where NAME can be a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_PREFIXES: dict[str, Literal["timm", "hf"]] = {"timm:": "timm", "hf:": "hf"}
_SCHEMES = ("hf-hub:", "local-dir:")


@dataclass(frozen=True)
class ModelName:
    """The name of a model in another library.

    Attributes:
        source: `timm` or `hf` (transformers).
        name: The name there: of an architecture, of a repository on the hub, or of a folder.
    """

    source: Literal["timm", "hf"]
    name: str

    @staticmethod
    def parse(name: Any) -> ModelName | None:
        """Return the parts of `model.name`; None where it names no other library, or nothing in it."""
        if not isinstance(name, str):
            return None
        for prefix, source in _PREFIXES.items():
            rest = name.removeprefix(prefix)
            if rest != name and rest:
                return ModelName(source, rest)
        return None

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    @property
    def folder(self) -> Path | None:
        """The folder that the name means; None for a name of the library or of the hub.

        A name is a folder's if it says so (`/models/ours`, `./ours`, `~/ours`, `local-dir:ours`), or if there is a
        folder of that name.
        """
        scheme = next((scheme for scheme in _SCHEMES if self.name.startswith(scheme)), "")
        rest = self.name.removeprefix(scheme)
        if scheme == "hf-hub:":
            return None
        says_so = scheme == "local-dir:" or rest.startswith(("/", "./", "../", "~"))
        path = Path(rest).expanduser()
        return path.absolute() if says_so or (path.is_dir() and (path / "config.json").is_file()) else None
