"""What the golden study gave: trial ids, removed channels and accuracies, recorded from a run directory or compared.

python tests/golden/golden.py RUN             # compare a run of study.yaml with expected.json
python tests/golden/golden.py RUN --record    # write expected.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

EXPECTED = Path(__file__).with_name("expected.json")
ACCURACIES = ("accuracy_pruned", "accuracy_repaired", "accuracy_finetuned", "accuracy_quantized", "accuracy")


def read_golden(run: Path) -> dict[str, dict[str, Any]]:
    """Return accuracies and removed channels, layer by layer, of every trial of a run directory, by trial id."""
    removed: dict[str, dict[str, list[int]]] = {}
    for row in pq.read_table(run / "layers.parquet").to_pylist():
        removed.setdefault(row["trial_id"], {})[row["layer"]] = row["removed_channels"]
    return {
        row["trial_id"]: {
            **{name: row[name] for name in ACCURACIES},
            "macs": row["macs"],
            "removed": {layer: channels for layer, channels in removed[row["trial_id"]].items() if channels},
        }
        for row in pq.read_table(run / "results.parquet").to_pylist()
    }


def differences(expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """Return what differs, a line each: the trials, then the fields of each trial that both have."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: new" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        for field, value in expected[name].items():
            if found[name][field] != value:
                lines.append(f"{name}: {field} was {value}, is {found[name][field]}")
    return lines


def main() -> int:
    """Record or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of tests/golden/study.yaml")
    parser.add_argument("--record", action="store_true", help="write expected.json")
    arguments = parser.parse_args()
    found = read_golden(arguments.run)
    if arguments.record:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
        EXPECTED.write_text(f"{{\n{lines}\n}}\n")
        return 0
    lines = differences(json.loads(EXPECTED.read_text()), found)
    sys.stdout.write("\n".join([*lines, f"{len(found)} trials, {len(lines)} differences"]) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
