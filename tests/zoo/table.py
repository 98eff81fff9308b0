"""The zoo tried, and its table written: `python tests/zoo/table.py --write docs/benchmarks/architectures.md`.

Architectures that a file of results holds are not tried again, so that a table can be made in several runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from zoo_architectures import Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import LIMIT, run_alone
from zoo_reference import try_torch_pruning
from zoo_table import markdown, write
from zoo_trial import try_architecture


def try_all(architectures: Sequence[Architecture], results: Path | None, reference: bool) -> dict[str, Any]:
    """Try architectures one after another, and return findings by `source name`; a file keeps them meanwhile."""
    found = _read(results)
    for architecture in architectures:
        key = key_of(architecture)
        known = found.get(key, {})
        if not known:
            found[key] = run_alone(try_architecture, architecture)
        wanted = reference and "reference" not in known and found[key].get("outcome") != "missing"
        if wanted:
            theirs = run_alone(try_torch_pruning, architecture, LIMIT // 2)
            why = theirs.pop("ended", "no finding")
            found[key] |= {"reference": "not done in time" if why.startswith("not done") else why} | theirs
        if results is not None and (wanted or not known):
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: found[key]}) + "\n")
    return found


def key_of(architecture: Architecture) -> str:
    """Return the name by which findings of an architecture are known."""
    return f"{architecture.source} {architecture.name}"


def _read(results: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if results is not None and results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            found |= json.loads(line)
    return found


def main() -> None:
    """Try what the arguments say."""
    parser = argparse.ArgumentParser(description="Try the architectures of the zoo.")
    parser.add_argument("--write", type=Path, help="a document to put the table into")
    parser.add_argument("--results", type=Path, help="a file of results, to go on from and to add to")
    parser.add_argument("--only", nargs="*", help="names, or sources, to try; without any, only the table is made")
    parser.add_argument("--without-reference", action="store_true", help="leave torch-pruning's column out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = ARCHITECTURES
    if given.only is not None:
        chosen = tuple(each for name in given.only for each in ARCHITECTURES if name in (each.name, each.source))
    for package in {each.source for each in chosen} & {"timm", "transformers"}:
        if importlib.util.find_spec(package):
            importlib.import_module(package)
    found = try_all(chosen, given.results, not given.without_reference)
    order = {key_of(each): place for place, each in enumerate(ARCHITECTURES)}
    table = markdown(dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order)))), len(ARCHITECTURES))
    if given.write:
        write(given.write, table)
    print(table)  # noqa: T201


if __name__ == "__main__":
    main()
