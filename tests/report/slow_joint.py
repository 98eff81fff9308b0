"""The numbers of a joint report by slow and obvious means: from the Parquet files alone, pair by pair, in loops."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from report.slow_effect import Effect, parts_of
from scipy import stats

Row = dict[str, Any]
Chosen = Callable[[Row], bool]
Table = list[tuple[float, np.ndarray | None]]
"""Of one run, a value per draw, and the same image by image."""


@dataclass
class Run:
    """One run directory as plain rows."""

    network: str
    training: str
    rows: list[Row]
    hits: dict[str, np.ndarray]
    dense: np.ndarray
    tests: np.ndarray
    removed: dict[str, dict[str, tuple[frozenset[int], int]]]
    study: Row

    def of(self, **columns: Any) -> list[Row]:
        return [row for row in self.rows if all(row[name] == value for name, value in columns.items())]


def read_run(folder: Path) -> Run:
    study = yaml.safe_load((folder / "study.yaml").read_text())
    images = pq.read_table(folder / "images.parquet").to_pylist()
    correct = pq.read_table(folder / "correct.parquet").to_pylist()
    removed: dict[str, dict[str, tuple[frozenset[int], int]]] = {}
    layers = pq.read_table(folder / "layers.parquet").to_pylist()
    for layer in sorted(layers, key=lambda layer: layer["layer_index"]):
        groups = removed.setdefault(layer["trial_id"], {})
        if layer["group"] is not None and layer["group"] not in groups:
            groups[layer["group"]] = (frozenset(layer["removed_channels"]), layer["out_channels_dense"])
    return Run(
        study["model"]["name"],
        str(study["model"]["train"]["seed"]),
        pq.read_table(folder / "results.parquet").to_pylist(),
        {row["trial_id"]: np.unpackbits(np.frombuffer(row["correct"], np.uint8))[: len(images)] for row in correct},
        np.array([image["correct_dense"] for image in images]),
        np.array([image["role"] == "test" for image in images]),
        removed,
        study,
    )


class Slow:
    """The effects of several runs.

    Args:
        folders: Their run directories.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        order = list(dict.fromkeys(read_run(folder).network for folder in folders))
        self.runs = sorted(map(read_run, folders), key=lambda run: (order.index(run.network), run.training))
        self.networks = list(dict.fromkeys(run.network for run in self.runs))
        self.tests = self.runs[0].tests
        self.everything = np.ones(len(self.tests), dtype=bool)

    def effect(
        self,
        tables: list[Table],
        threshold: float = 0.0,
        grain: float = 0.0,
        runs: list[Run] | None = None,
        shared: list[list[float]] | None = None,
    ) -> Effect:
        """The effect of values per run and draw; `shared` are those of the draws that all runs have, if not all do."""
        runs = self.runs if runs is None else runs
        own = [[table for run, table in zip(runs, tables, strict=True) if run.network == n] for n in self.networks]
        units = [[np.array([value for value, _ in table]) for table in group] for group in own]
        draws = units
        if shared is not None:
            draws = [
                [np.array(v) for run, v in zip(runs, shared, strict=True) if run.network == n] for n in self.networks
            ]
        images: list[list[Any]] | None = None
        if all(bits is not None for table in tables for _, bits in table):
            images = [[sum(bits for _, bits in table) / len(table) for table in group] for group in own]  # type: ignore[misc]
        over = [np.array([statistics.fmean(float(unit.mean()) for unit in group)]) for group in units]
        over_draws: list[Any] = [sum(group) / len(group) for group in draws]
        over_images: Any = None if images is None else [[sum(group) / len(group) for group in images]]
        grain /= min(unit.size for group in units for unit in group)
        is_few = shared is not None and len(shared[0]) < 3
        return Effect(
            statistics.fmean(float(each.mean()) for each in over),
            None if is_few else parts_of(units, draws, images, grain),
            None if is_few else parts_of([over], [over_draws], over_images, grain),
            {name: float(each.mean()) for name, each in zip(self.networks, over, strict=True)},
            threshold,
        )

    def compare(
        self, first: Chosen, second: Chosen | None, mask: np.ndarray | None = None, stage: str = "accuracy"
    ) -> Effect | None:
        """One side against another; against the dense model where there is no second. Pairs share their draw."""
        mask = self.everything if mask is None else mask
        found: list[tuple[Run, dict[int, tuple[float, np.ndarray | None]]]] = []
        for run in self.runs:
            table: dict[int, tuple[float, np.ndarray | None]] = {}
            for draw in sorted({row["calibration_seed"] for row in run.rows if first(row)}):
                own = [row for row in run.rows if first(row) and row["calibration_seed"] == draw]
                others = [row for row in run.rows if second is not None and second(row)]
                if len({row["calibration_seed"] for row in others}) > 1:  # else it stands beside each draw
                    others = [row for row in others if row["calibration_seed"] == draw]
                if stage == "accuracy":
                    other = run.dense if second is None else self.mean_bits(run, others)
                    bits = 100.0 * (self.mean_bits(run, own) - other)[mask]
                    table[draw] = float(bits.mean()), bits
                else:
                    values = [statistics.fmean(100 * row[stage] for row in side) for side in (own, others)]
                    chance = 10 + 0.1 * (100 * own[0]["accuracy_dense"] - 10)
                    if max(values) > chance:
                        table[draw] = values[0] - values[1], None
            if table:
                found.append((run, table))
        runs = [run for run, _ in found]
        if {run.network for run in runs} < set(self.networks):
            return None
        tables, shared = self.of_draws([table for _, table in found])
        count = mask.sum() if stage == "accuracy" else len(self.everything)
        return self.effect(tables, grain=100 / float(count), runs=runs, shared=shared)

    @staticmethod
    def of_draws(found: list[dict[int, Any]]) -> tuple[list[Table], list[list[float]] | None]:
        """The values of each run, and those of the draws that all runs have, unless they are the same."""
        shared = None
        if any(table.keys() != found[0].keys() for table in found):
            draws = [draw for draw in found[0] if all(draw in table for table in found)]
            shared = [[table[draw][0] for draw in draws] for table in found]
        return [list(table.values()) for table in found], shared

    @staticmethod
    def mean_bits(run: Run, rows: list[Row]) -> Any:
        return sum(run.hits[row["trial_id"]] for row in rows) / len(rows)

    def ranking(self, budget: str) -> Effect:
        found = []
        for run in self.runs:
            table: dict[int, Any] = {}
            for draw in (0, 1, 2):
                rows = run.of(requested_budget=budget, calibration_seed=draw, control=None)
                labels = sorted({row["label"] for row in rows})
                means = [
                    [
                        statistics.fmean(row[f"accuracy_{stage}"] for row in rows if row["label"] == label)
                        for label in labels
                    ]
                    for stage in ("pruned", "repaired")
                ]
                if all(len(set(own)) > 1 for own in means):  # where all are alike there is no order
                    table[draw] = float(stats.spearmanr(*means).statistic), None
            found.append(table)
        tables, shared = self.of_draws(found)
        return self.effect(tables, threshold=0.5, grain=12 / (len(labels) * (len(labels) ** 2 - 1)), shared=shared)

    def plans(self, budget: str) -> Effect:
        tables = []
        for run in self.runs:
            rows = [row for row in run.of(requested_budget=budget, control=None) if row["reads_data"]]
            means = []
            for key in sorted({(row["label"], row["seed"]) for row in rows}):
                own = [row["trial_id"] for row in rows if (row["label"], row["seed"]) == key]
                shares = []
                for one, two in itertools.combinations(own, 2):
                    both = either = 0
                    for group, (gone, width) in run.removed[one].items():
                        kept = [set(range(width)) - gone, set(range(width)) - run.removed[two][group][0]]
                        both, either = both + len(kept[0] & kept[1]), either + len(kept[0] | kept[1])
                    shares.append(both / either)
                means += [statistics.fmean(shares)] if shares else []
            tables.append([(statistics.fmean(means), None)])
        return self.effect(tables, threshold=0.95)

    def agreement(self, budget: str) -> Effect:
        tables = []
        for run in self.runs:
            table: Table = []
            for draw in (0, 1, 2):
                rows = run.of(requested_budget=budget, calibration_seed=draw, control=None)
                pairs = [
                    (one["trial_id"], two["trial_id"])
                    for one in rows
                    for two in rows
                    if one["method"] == "coverage" and two["method"] in ("magnitude", "taylor")
                ]
                means = []
                for group, (_, width) in run.removed[pairs[0][0]].items():
                    found = []
                    for pair in pairs:
                        marks = [[channel in run.removed[name][group][0] for channel in range(width)] for name in pair]
                        if all(0 < sum(own) < width for own in marks):
                            found.append(float(stats.pearsonr(*np.array(marks, dtype=float)).statistic))
                    means += [statistics.fmean(found)] if found else []
                table.append((statistics.fmean(means), None))
            tables.append(table)
        return self.effect(tables)
