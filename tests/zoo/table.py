"""The zoo tried, and its table written: `python tests/zoo/table.py --write docs/benchmarks/architectures.md`.

What a file of results or the document's own table holds is not tried again, so that a table can be made in several
runs, and extended where the file is gone. What takes least time is tried first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from zoo_after import try_afterwards
from zoo_architectures import KEEPS, PRUNED, Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import LIMIT, run_alone
from zoo_record import read_table
from zoo_reference import try_torch_pruning
from zoo_table import markdown, write
from zoo_trial import try_architecture

PARTS = {"pruning": "outcome", "reference": "reference", "after": "onnx"}
"""Parts of the trial, and the finding by which each is known to be done."""
TRIALS = {"pruning": try_architecture, "reference": try_torch_pruning, "after": try_afterwards}
LIMITS = {"pruning": 2 * LIMIT, "reference": LIMIT // 2, "after": 2 * LIMIT}
"""Seconds of processor time: both prunings, repair, and export may each take `LIMIT`."""


def try_all(
    architectures: Sequence[Architecture], results: Path | None, parts: Collection[str], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Try architectures one after another, and return findings by `source name`; a file keeps them meanwhile.

    Args:
        architectures: What to try.
        results: The file of results.
        parts: The parts of the trial, names of `PARTS`; those that findings are known of are left out.
        known: Findings that are recorded elsewhere.
    """
    found = {key: dict(each) for key, each in known.items()}
    for key, each in _read(results).items():
        found[key] = found.get(key, {}) | each
    for architecture in architectures:
        key = key_of(architecture)
        each = found.get(key, {})
        for part in PARTS:
            if part not in parts or _is_known(part, each):
                continue
            made = run_alone(TRIALS[part], architecture, LIMITS[part])
            if part != "pruning" and "ended" in made:
                why = made.pop("ended")
                made = {PARTS[part]: "not done in time" if why.startswith("not done") else why} | made
            found[key] = each = each | made
            if results is not None:
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({key: made}) + "\n")
    return found


def _is_known(part: str, finding: Mapping[str, Any]) -> bool:
    """Return whether a part was tried, or cannot be, since there is no smaller model or no such architecture."""
    outcome = finding.get("outcome")
    if part == "pruning":
        return outcome is not None or "ended" in finding
    return PARTS[part] in finding or outcome == "missing" or (part == "after" and outcome not in (PRUNED, KEEPS))


def key_of(architecture: Architecture) -> str:
    """Return the name by which findings of an architecture are known."""
    return f"{architecture.source} {architecture.name}"


def _read(results: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if results is not None and results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            for key, each in json.loads(line).items():
                found[key] = found.get(key, {}) | each
    return found


def main() -> None:
    """Try what the arguments say."""
    parser = argparse.ArgumentParser(description="Try the architectures of the zoo.")
    parser.add_argument("--write", type=Path, help="a document to put the table into")
    parser.add_argument("--results", type=Path, help="a file of results, to go on from and to add to")
    parser.add_argument("--only", nargs="*", help="names, or sources, to try; without any, only the table is made")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="what to try")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = ARCHITECTURES
    if given.only is not None:
        chosen = tuple(each for name in given.only for each in ARCHITECTURES if name in (each.name, each.source))
    for package in {each.source for each in chosen} & {"timm", "transformers"}:
        if importlib.util.find_spec(package):
            importlib.import_module(package)
    recorded = read_table(given.write) if given.write and given.write.exists() else {}
    chosen = sorted(chosen, key=lambda each: recorded.get(key_of(each), {}).get("seconds", LIMIT))
    found = try_all(chosen, given.results, given.parts, recorded)
    order = {key_of(each): place for place, each in enumerate(ARCHITECTURES)}
    table = markdown(dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order)))), len(ARCHITECTURES))
    if given.write:
        write(given.write, table)
    print(table)  # noqa: T201


if __name__ == "__main__":
    main()
