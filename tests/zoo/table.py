"""The zoo tried, and its table written: `python tests/zoo/table.py --write docs/benchmarks/architectures.md`.

Architectures that a file of results holds are not tried again, so that a table can be made in several runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from zoo_architectures import Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import LIMIT, run_alone
from zoo_trial import LEAST_MACS, MACS, RATIO, try_architecture, try_torch_pruning

BEGIN, END = "<!-- zoo -->", "<!-- end of zoo -->"
_REASON = 90
"""Characters of a reason that the table shows."""


def try_all(architectures: Sequence[Architecture], results: Path | None, reference: bool) -> dict[str, Any]:
    """Try architectures one after another, and return findings by `source name`; a file keeps them meanwhile."""
    found = _read(results)
    for architecture in architectures:
        key = key_of(architecture)
        if key in found:
            continue
        found[key] = run_alone(try_architecture, architecture)
        if reference and found[key].get("outcome") != "missing":
            found[key] |= {"reference": "not done in time"} | run_alone(try_torch_pruning, architecture, LIMIT // 2)
        if results is not None:
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


def is_half(finding: Mapping[str, Any]) -> bool:
    """Return whether half the MACs were met."""
    half = finding.get("half", "")
    return half.replace(".", "").isdigit() and LEAST_MACS <= float(half) <= MACS


def outcome_of(finding: Mapping[str, Any]) -> str:
    """Return the outcome in words, with why the process ended if it did."""
    return finding.get("outcome") or f"not done: {finding.get('ended', 'no finding')}"


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table and a sentence of what it sums up to."""
    tried = {key: each for key, each in found.items() if each.get("outcome") != "missing"}
    outcomes = Counter(outcome_of(each).partition(":")[0] for each in tried.values())
    exact, half = outcomes["pruned"] + outcomes["keeps"], sum(map(is_half, tried.values()))
    reference = sum(_is_number(each.get("reference", "")) for each in tried.values())
    sentence = (
        f"Of {len(tried)} architectures {exact} are pruned exactly at ratio {RATIO:g} ({outcomes['keeps']} keep some "
        f"layers at their width, and warnings name these), {outcomes['refused']} are refused by name, and {half} reach "
        "half of their MACs."
    )
    if any("reference" in each for each in tried.values()):
        sentence += (
            f" torch-pruning's own gives {reference} smaller models that run; what they compute was not compared."
        )
    lines = [
        sentence,
        "",
        f"| architecture | input | ratio {RATIO:g} | groups | MACs left | largest difference | loaded | macs {MACS:g} "
        "| seconds | torch-pruning |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, each in found.items():
        lines.append("| " + " | ".join(_row(key, each)) + " |")
    return "\n".join(lines) + "\n"


def _is_number(text: str) -> bool:
    return text.replace(".", "").isdigit()


def _row(key: str, each: Mapping[str, Any]) -> list[str]:
    outcome = outcome_of(each)
    told = outcome if outcome in ("pruned", "missing") else f"{outcome}: {_short(each.get('told', ''))}"
    error = each.get("error")
    half = each.get("half", "")
    return [
        key,
        " x ".join(map(str, each.get("input", []))),
        told.rstrip(": "),
        str(each.get("groups", "")),
        f"{each['macs']:.3f}" if "macs" in each else "",
        "" if error is None else f"{error:.0e}",
        _short(each.get("loads", "")),
        half if _is_number(half) else _short(half),
        f"{each['seconds']:.0f}" if "seconds" in each else "",
        each.get("reference", "").replace("|", "/"),
    ]


def _short(text: str) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= _REASON else f"{text[:_REASON]}..."


def write(document: Path, table: str) -> None:
    """Put the table between the two marks of a document, or at its end if it has none."""
    text = document.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if mark else "\n"
    document.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def main() -> None:
    """Try what the arguments say."""
    parser = argparse.ArgumentParser(description="Try the architectures of the zoo.")
    parser.add_argument("--write", type=Path, help="a document to put the table into")
    parser.add_argument("--results", type=Path, help="a file of results, to go on from and to add to")
    parser.add_argument("--only", nargs="+", default=[], help="names, or sources, to try")
    parser.add_argument("--without-reference", action="store_true", help="leave torch-pruning's column out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for package in ("timm", "transformers"):
        if importlib.util.find_spec(package):
            importlib.import_module(package)
    chosen = [each for name in given.only for each in ARCHITECTURES if name in (each.name, each.source)]
    found = try_all(chosen or ARCHITECTURES, given.results, not given.without_reference)
    table = markdown(found)
    if given.write:
        write(given.write, table)
    print(table)  # noqa: T201


if __name__ == "__main__":
    main()
