"""Run directories of several networks and trainings, with planted effects: every image of every trial is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cleanai_ray.storage import schemas
from cleanai_ray.storage.image_schemas import CORRECT, CORRECT_FILE, IMAGES, IMAGES_FILE, TEST, VALIDATION, pack
from cleanai_ray.storage.run_directory import RunDirectory

METHODS = ("coverage", "hybrid", "magnitude", "random", "reconstruction", "taylor")
BUDGETS = ("macs=0.7", "macs=0.5", "macs=0.3")
KINDS = ("scratch", "narrow", "dense_finetuned", "torch_pruning")
WIDTHS = {"features.0": 12, "features.3": 16}
ASKED = {"torch_pruning": BUDGETS, "dense_finetuned": ("macs=1",)}
COST = {"macs=0.7": 0.02, "macs=0.5": 0.08, "macs=0.3": 0.3}


@dataclass
class Planted:
    """What the tables are drawn from: a score per image, and a model is right where it is above zero.

    Attributes:
        skill: What each method adds to the score, times a factor that grows with what is removed.
        network: Standard deviation of what a network adds to a method's skill.
        training: That of what a training adds.
        draw: That of what a draw of calibration images adds, in all runs.
        noise: That of an image's score in one trial.
        num_images: Scored images.
        seed: Seed of all draws.
    """

    skill: Mapping[str, float] = field(default_factory=dict)
    network: float = 0.0
    training: float = 0.05
    draw: float = 0.0
    noise: float = 0.3
    num_images: int = 400
    seed: int = 0


def write_runs(
    folder: Path,
    planted: Planted,
    *,
    networks: Sequence[str] = ("resnet20", "vgg_small", "mobilenet_v2"),
    trainings: int | Sequence[int] = 3,
    methods: Sequence[str] = METHODS,
    num_draws: int = 3,
    controls: Sequence[str] = KINDS,
) -> list[Path]:
    """Write a run directory for each training of each network, and return them."""
    random = np.random.default_rng(planted.seed)
    counts = [trainings] * len(networks) if isinstance(trainings, int) else list(trainings)
    ease = random.normal(1.2, 0.8, planted.num_images)
    decides = np.random.default_rng(99).random(planted.num_images) < 0.5
    shared = {(method, draw): random.normal(0, 1) for method in methods for draw in range(num_draws)}
    found = []
    for network, count in zip(networks, counts, strict=True):
        own = {method: random.normal(0, planted.network) for method in methods}
        taste = 0.4 * random.standard_normal(planted.num_images)
        for training in range(count):
            lucks = {method: own[method] + random.normal(0, planted.training) for method in methods}
            run = _Run(planted, ease + taste + 0.3 * random.standard_normal(planted.num_images), decides, random)
            run.dense()
            for method in methods:
                for draw in range(num_draws):
                    for plan in range(2 if method == "random" else 1):
                        luck = lucks[method] + planted.draw * shared[method, draw]
                        for budget in BUDGETS:
                            skill = planted.skill.get(method, 0.0) + luck
                            run.trial(method, budget, draw, plan, skill)
            for kind in controls:
                for budget in ASKED.get(kind, ("macs=0.5",)):
                    for draw in range(num_draws if kind == "torch_pruning" else 1):
                        run.control(kind, budget, draw)
            place = folder / f"research_{network}_seed{training}"
            run.write(place, network, training)
            found.append(place)
    return found


class _Run:
    def __init__(self, planted: Planted, ease: np.ndarray, decides: np.ndarray, random: np.random.Generator) -> None:
        self.planted, self.ease, self.decides, self.random = planted, ease, decides, random
        self.rows: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self.bits: list[dict[str, Any]] = []

    def dense(self) -> None:
        self.dense_hits = self.ease + self.planted.noise * self.random.standard_normal(len(self.ease)) > 0

    def trial(self, method: str, budget: str, draw: int, plan: int, skill: float) -> None:
        metric = "normalized_mean" if method == "coverage" else None
        name = f"{method}-{budget.replace('=', '')}-d{draw}-p{plan}"
        score = self.ease - COST[budget] + skill * (0.2 + 3 * COST[budget])
        row = self._row(name, method, budget, draw, score, self.planted.noise)
        row |= {"coverage_metric": metric, "seed": plan, "mode": "global"}
        row["label"] = f"{method}/{metric}" if metric else method
        row |= {f"accuracy_{stage}": float((score - lost > 0).mean()) for stage, lost in _STAGES}
        self.rows.append(row)
        for place, (group, width) in enumerate(WIDTHS.items()):
            self.layers.append(
                {
                    "trial_id": name,
                    "layer": group,
                    "group": group,
                    "layer_index": place,
                    "kind": "Conv2d",
                    "out_channels_dense": width,
                    "out_channels": width - 4,
                    "removed_channels": sorted(self.random.choice(width, 4, replace=False).tolist()),
                }
            )

    def control(self, kind: str, budget: str, draw: int) -> None:
        name = f"control-{kind}-{budget.replace('=', '')}-d{draw}"
        row = self._row(name, "reconstruction" if kind == "scratch" else kind, budget, draw, self.ease - 0.1, 0.3)
        self.rows.append({**row, "control": kind, "mode": "local", "seed": 0, "label": kind})

    def _row(self, name: str, method: str, budget: str, draw: int, score: np.ndarray, noise: float) -> dict[str, Any]:
        hits = score + noise * self.random.standard_normal(len(score)) > 0
        self.bits.append({"trial_id": name, "num_images": len(hits), "correct": pack(hits), "scored": None})
        row: dict[str, Any] = {"trial_id": name, "status": schemas.OK, "method": method, "requested_budget": budget}
        row |= {"steps": 1, "calibration_samples": 64, "calibration_seed": draw, "reads_data": method != "magnitude"}
        row |= {"num_classes": 10, "num_evaluated": len(hits), "accuracy": float(hits.mean())}
        row |= {"accuracy_dense": float(self.dense_hits.mean()), "macs_dense": 1000, "macs": 700}
        for role, part in (("validation", self.decides), ("test", ~self.decides)):
            row |= {f"accuracy_{role}": float(hits[part].mean()), f"num_{role}": int(part.sum())}
            row[f"accuracy_{role}_dense"] = float(self.dense_hits[part].mean())
        return row

    def write(self, place: Path, network: str, training: int) -> None:
        run = RunDirectory(place)
        images = [
            {"number": i, "split": "test", "role": VALIDATION if one else TEST, "label": i % 10, "correct_dense": right}
            for i, (one, right) in enumerate(zip(self.decides.tolist(), self.dense_hits.tolist(), strict=True))
        ]
        tables = (
            (schemas.RESULTS_FILE, self.rows, schemas.RESULTS),
            (schemas.LAYERS_FILE, self.layers, schemas.LAYERS),
        )
        for name, rows, schema in (*tables, (IMAGES_FILE, images, IMAGES), (CORRECT_FILE, self.bits, CORRECT)):
            run.write_table(name, schemas.to_table(rows, schema))
        run.write_text("study.yaml", yaml.safe_dump(study_of(network, training)))
        digests = {"weights": f"{network}{training}", "calibration": "feedbeef00", "study": "abc"}
        run.write_json("environment.json", {"version": "0.1.0", "commit": "0123456789abcdef", "digests": digests})


_STAGES = (("pruned", 0.9), ("repaired", 0.2))


def study_of(network: str, training: int) -> dict[str, Any]:
    return {
        "name": f"research_{network}",
        "question": f"Does it pay to prune {network}?",
        "model": {"name": network, "train": {"epochs": 12, "seed": training}},
        "data": {"name": "fashion_mnist", "calibration": {"samples": 64, "seed": [0, 1, 2]}},
        "sweep": {"controls": {"kinds": list(KINDS), "widths_of": "reconstruction"}},
        "questions": {"primary": "b1", "coverage_metric": "normalized_mean"},
    }
