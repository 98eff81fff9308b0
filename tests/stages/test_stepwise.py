"""Pruning in steps with fine-tuning between them, against a slow loop of the public pieces."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cleanai_ray import api
from cleanai_ray.config.study import Trial, parse_study
from cleanai_ray.pruning.saved_model import load_model, save_model
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.dense import DenseModel, prepare_dense
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.outcome import TrialOutcome, run_trial
from cleanai_ray.stages.repair import renumber
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import fine_tune

NO_REPAIR = {"compensation": "none", "batch_norm": "none"}
CLOSED_FORM = {"compensation": "closed_form", "batch_norm": "relative", "samples": 64}
STUDY: dict[str, Any] = {
    "model": {"factory": f"{__name__}:tiny_net", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 3}},
    "data": {"name": "digits", "calibration": {"samples": 128, "shard_size": 64}},
    "sweep": {"methods": ["magnitude"], "ratios": [0.64], "steps": [2]},
    "pruning": {"round_to": None},
    "repair": NO_REPAIR,
    "finetune": {"between_steps": 1, "learning_rate": 0.1, "early_stopping": None, "save_every_n_epochs": 1},
    "evaluation": {"samples": 200, "latency": None},
}
# 0.36 of the channels in the end, and its root, 0.6, after the first of two steps: 8 -> 4 -> 2 and 16 -> 9 -> 5.
FIRST_RATIO = 0.4
WIDTHS = {"0": (8, 4, 2), "4": (16, 9, 5)}
SECOND_RATIOS = {"0": 0.5, "4": 0.4}


def tiny_net(num_classes: int) -> nn.Sequential:
    """A network that learns digits at once; what repair shifts in its second convolution needs a bias of its own."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


class Opened:
    """A study that differs from `STUDY` in some keys, opened; and its dense model, which all of them share."""

    dense: DenseModel | None = None

    def __init__(self, **sections: Any) -> None:
        study = parse_study({**STUDY, **{name: {**STUDY.get(name, {}), **keys} for name, keys in sections.items()}})
        self.workspace: Workspace = open_workspace(study.model_dump_json(), "cpu")
        self.trial: Trial = study.trials()[0]
        if Opened.dense is None:
            Opened.dense = prepare_dense(self.workspace)
        self.model = self.workspace.dense_model(Opened.dense.weights)

    def run(self, context: LocalContext | None = None) -> TrialOutcome:
        assert Opened.dense is not None
        return run_trial(self.workspace, self.trial, Opened.dense, self.model, self.measures(), context)

    def measures(self) -> DenseMeasures:
        if self.trial.method == "magnitude":
            return DenseMeasures()
        return DenseMeasures(statistics=calibrate_locally(self.workspace, self.model, self.trial))

    def images(self) -> list[tuple[Tensor, Tensor]]:
        return list(self.workspace.batches("calibration", positions=np.arange(64)))

    def tune(self, model: nn.Module, epochs: int, epochs_before: int) -> None:
        """Fine-tune as the study says, by the training loop alone."""
        batches, steps = self.workspace.training_batches(self.trial.seed, None)
        fine_tune(
            model,
            section=self.workspace.study.finetune.model_copy(update={"epochs": epochs}),
            data=TrainingData(
                train_batches=lambda epoch: batches(epochs_before + epoch),
                steps_per_epoch=steps,
                validation_batches=lambda: self.workspace.batches("validation"),
            ),
            context=LocalContext(),
            seed=0,
        )


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    first, second = found.state_dict(), expected.state_dict()
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def removed_by_both(
    first: Mapping[str, tuple[int, ...]], second: Mapping[str, tuple[int, ...]]
) -> dict[str, list[int]]:
    """What two prunings one after the other remove, in the numbers of the dense model."""
    found = {}
    for layer, (width, *_) in WIDTHS.items():
        left = [channel for channel in range(width) if channel not in first[layer]]
        found[layer] = sorted({*first[layer], *(left[channel] for channel in second[layer])})
    return found


@pytest.mark.parametrize("repaired", [False, True], ids=["bare", "repaired"])
@pytest.mark.parametrize("method", ["magnitude", "adaptive"])
def test_the_second_step_scores_and_cuts_the_model_that_was_fine_tuned(method: str, repaired: bool) -> None:
    """Prune, repair by the dense model, fine-tune; prune that, repair by what it was, fine-tune: by hand."""
    opened = Opened(
        sweep={"methods": [method]},
        repair=CLOSED_FORM if repaired else NO_REPAIR,
        finetune={"between_steps": 2, "epochs": 1},
    )
    outcome = opened.run()

    def pruned(model: nn.Module, **amount: Any) -> api.PruneResult:
        reads = method == "adaptive"
        statistics = calibrate_locally(opened.workspace, model, opened.trial) if reads else None
        name = "coverage" if reads else method
        return api.prune(
            model,
            opened.workspace.example_input(),
            method=name,
            stats=statistics,
            repair=False,
            **amount,
            round_to=None,
        )

    first = pruned(opened.model, ratio=FIRST_RATIO)
    model = first.model
    if repaired:
        model = repair(
            opened.model, first, opened.images(), RepairOptions(compensation="closed_form", batch_norm="relative")
        ).model
    untuned = copy.deepcopy(model)
    opened.tune(model, 2, 0)
    second = pruned(model, ratio=FIRST_RATIO, layer_ratios=SECOND_RATIOS)
    without_tuning = pruned(untuned, ratio=FIRST_RATIO, layer_ratios=SECOND_RATIOS)
    assert second.plan.removed != without_tuning.plan.removed, "the case does not tell tuned weights from others"
    small = second.model
    if repaired:
        small = repair(
            model, second, opened.images(), RepairOptions(compensation="closed_form", batch_norm="relative")
        ).model
    opened.tune(small, 1, 2)

    assert outcome.model is not None
    assert outcome.plan is not None
    removed = {layer: list(channels) for layer, channels in outcome.plan.removed.items()}
    assert removed == removed_by_both(first.plan.removed, second.plan.removed)
    assert {layer: dense - len(removed[layer]) for layer, (dense, *_) in WIDTHS.items()} == {"0": 2, "4": 5}
    assert_same(outcome.model, small)


def test_statistics_of_the_dense_model_go_with_the_channels_through_fine_tuning() -> None:
    """Coverage of the dense model does not change with the weights: two steps remove what one removes."""
    outcome, one = (Opened(sweep={"methods": ["coverage"], "steps": [steps]}, **more).run() for steps, more in CASES)
    assert outcome.plan is not None
    assert one.plan is not None
    assert outcome.plan.removed == one.plan.removed
    assert outcome.row["epochs_run"] == 1


CASES: tuple[tuple[int, dict[str, Any]], ...] = ((2, {}), (1, {"finetune": {"between_steps": 0}}))


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_without_epochs_between_the_steps_the_plan_is_that_of_pruning_alone(method: str) -> None:
    opened = Opened(sweep={"methods": [method]}, finetune={"between_steps": 0})
    outcome, example = opened.run(), opened.workspace.example_input()
    alone = api.prune(
        opened.model,
        example,
        method=method,
        ratio=0.64,
        steps=2,
        stats=opened.measures().statistics,
        repair=False,
        round_to=None,
    )
    assert outcome.plan is not None
    assert outcome.model is not None
    assert outcome.plan.removed == alone.plan.removed
    assert_same(outcome.model, alone.model)
    assert outcome.history == ()


@pytest.mark.parametrize("method", ["taylor", "wanda", "fpgm"])
def test_the_plan_and_the_weights_that_are_kept_give_the_last_model(method: str, tmp_path: Path) -> None:
    opened = Opened(sweep={"methods": [method], "steps": [3]}, repair=CLOSED_FORM, finetune={"epochs": 1})
    outcome = opened.run()
    assert outcome.model is not None
    assert outcome.plan is not None
    applied = {name: value.shape for name, value in api.apply_plan(opened.model, outcome.plan).state_dict().items()}
    shapes = {name: value.shape for name, value in outcome.model.state_dict().items()}
    assert shapes == {**applied, "4.bias": shapes["4.bias"]}, "repair gives the second convolution a bias"
    save_model(outcome.model, outcome.plan, RunDirectory(tmp_path))
    images, _ = opened.images()[0]
    loaded = load_model(opened.model, RunDirectory(tmp_path)).eval()
    assert torch.equal(loaded(images), outcome.model.eval()(images))
    layers = {layer["layer"]: layer for layer in outcome.layers}
    for name, (dense, _, last) in WIDTHS.items():
        assert (layers[name]["out_channels_dense"], layers[name]["out_channels"]) == (dense, last)
        assert layers[name]["removed_channels"] == list(outcome.plan.removed[name])


def test_the_columns_count_the_epochs_of_all_steps() -> None:
    outcome = Opened(sweep={"steps": [3]}, finetune={"between_steps": 2, "epochs": 1}).run()
    assert [(row["epoch"], row["step"]) for row in outcome.history] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]
    for step in (1, 2, 3):
        assert sum(row["is_best"] for row in outcome.history if row["step"] == step) <= 1
    row = outcome.row
    assert row["epochs_run"] == 5
    assert row["best_epoch"] == (5 if outcome.history[-1]["is_best"] else 0)
    assert row["accuracy"] == row["accuracy_finetuned"]
    parts = sum(row[f"seconds_{name}"] for name in ("prune", "finetune", "evaluate"))
    assert 0 < parts <= row["seconds_total"], "no second counts twice"
    schemas.to_table(outcome.history, schemas.HISTORY)


def test_epochs_between_the_steps_need_none_at_the_end() -> None:
    row = Opened().run().row
    assert (row["epochs_run"], row["best_epoch"], row["accuracy_finetuned"]) == (1, None, None)
    assert row["accuracy"] == row["accuracy_pruned"]
    assert row["seconds_finetune"] > 0


def test_a_step_that_removes_nothing_is_not_fine_tuned_after() -> None:
    """Of 8 and 16 channels, 0.9 are kept in the end: the first of 5 steps takes one of each, and the others none."""
    outcome = Opened(sweep={"ratios": [0.06], "steps": [5]}, repair=CLOSED_FORM).run()
    assert [row["step"] for row in outcome.history] == [1]
    assert outcome.row["warnings"] == [f"step {step} of 5 removed nothing" for step in (2, 3, 4, 5)]


class Memory:
    """Checkpoints by part."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def save(self, content: bytes, part: str = "") -> None:
        self.kept[part] = content

    def load(self, part: str = "") -> bytes | None:
        return self.kept.get(part)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("dies_in", "again"), [(2, [2, 3, 4, 5]), (4, [4, 5]), (5, [5])])
def test_a_trial_that_was_interrupted_goes_on_from_the_last_epoch(dies_in: int, again: list[int]) -> None:
    opened = Opened(sweep={"steps": [3]}, repair=CLOSED_FORM, finetune={"between_steps": 2, "epochs": 1})
    quiet, memory = opened.run(), Memory()

    def dies(row: Mapping[str, Any]) -> None:
        if row["epoch"] == dies_in:
            raise Interrupted

    with pytest.raises(Interrupted):
        opened.run(LocalContext(checkpoints=memory, on_row=dies))
    seen: list[int] = []
    resumed = opened.run(LocalContext(checkpoints=memory, on_row=lambda row: seen.append(row["epoch"])))
    assert seen == again
    assert len(memory.kept) == 3, "each part has its own"
    assert resumed.model is not None
    assert quiet.model is not None
    assert_same(resumed.model, quiet.model)
    assert resumed.row["accuracy"] == quiet.row["accuracy"]
    timeless = [[{**row, "images_per_second": 0} for row in found.history] for found in (resumed, quiet)]
    assert timeless[0] == timeless[1]


def test_channels_are_renumbered_among_those_kept_before() -> None:
    kept = {"a": np.array([1, 4, 6]), "b": np.array([0, 2]), "c": np.array([3])}
    earlier = {"a": np.array([0, 1, 4, 5, 6]), "b": np.array([0, 2])}
    found = {layer: channels.tolist() for layer, channels in renumber(kept, earlier).items()}
    assert found == {"a": [1, 2, 4], "c": [3]}
