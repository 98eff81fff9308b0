"""A module that joins a package of CleanAI-Ray for the length of a test, as a new file in its folder would."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cleanai_ray.registry import Registry


@contextmanager
def new_file(registry: Registry, name: str, source: str, folder: Path) -> Iterator[None]:
    """Let a registry find a module that nobody imports, and forget it afterwards.

    Args:
        registry: The registry whose package the module joins.
        name: Name of the module.
        source: Its text.
        folder: An empty folder to write it to.
    """
    package = importlib.import_module(registry._package)
    registry.names()
    with pytest.MonkeyPatch.context() as patch:
        for attribute in ("_values", "_summaries", "_loaded"):
            patch.setattr(registry, attribute, getattr(registry, attribute).copy())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        try:
            yield
        finally:
            sys.modules.pop(f"{registry._package}.{name}", None)
            if hasattr(package, name):
                delattr(package, name)
