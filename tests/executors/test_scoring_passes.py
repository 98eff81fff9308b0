"""Whoever scores an evaluation image, and how often: every model once, and the dense one once a study."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors import dense as dense_stage
from cleanai_ray.executors.context import RunContext
from cleanai_ray.executors.dense import obtain_dense
from cleanai_ray.executors.local import LocalExecutor
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.models import build_model
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.run_directory import RunDirectory

NUM_IMAGES = 50
SETTINGS: dict[str, Any] = {
    **small.SMALL,
    "model": {**small.SMALL["model"], "train": {"epochs": 1}},
    "data": {**small.SMALL["data"], "batch_size": 20},
    "sweep": {"methods": ["magnitude", "random"], "ratios": [0.3], "quantization": ["none", "bf16"]},
    "repair": {"compensation": "none", "batch_norm": "reset"},
    "finetune": {"epochs": 0},
    "evaluation": {"sampling": "first", "samples": NUM_IMAGES, "latency": None},
}


class Passes:
    """How often each model ran on each evaluation image; a model is told by its weights.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        workspace = open_workspace(study.model_dump_json(), "cpu")
        images = torch.cat([images for images, _ in workspace.batches("evaluation")])
        self._images = {image.numpy().tobytes() for image in images}
        assert len(self._images) == NUM_IMAGES, "no image is there twice"
        self._type = type(build_model(study.model))
        self.counts: dict[bytes, Counter[bytes]] = {}

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if type(module) is self._type:
            pixels = [image.float().numpy().tobytes() for image in inputs[0]]
            if scored := [image for image in pixels if image in self._images]:
                self.counts.setdefault(weights_of(module), Counter()).update(scored)


def weights_of(model: nn.Module) -> bytes:
    return b"".join(value.detach().float().numpy().tobytes() for value in model.state_dict().values())


@contextmanager
def watched(study: Study) -> Iterator[Passes]:
    passes = Passes(study)
    handle = register_module_forward_pre_hook(passes.see)
    try:
        yield passes
    finally:
        handle.remove()


def test_every_model_is_run_once_on_each_evaluation_image(tmp_path: Path) -> None:
    study = parse_study(SETTINGS)
    with watched(study) as passes:
        failed, said = small.run(study, tmp_path)
    assert failed == 0, said
    # The dense model; and, of two methods, the one after pruning and the one after repair. Those in bfloat16 get images
    # that are rounded, so they are not among these, but the float models that they are made of are.
    float_models = 1 + 2 * 2
    exact = [counts for counts in passes.counts.values() if len(counts) == NUM_IMAGES]
    assert len(exact) == float_models, [len(counts) for counts in passes.counts.values()]
    for counts in exact:
        assert set(counts.values()) == {1}
    dense = weights_of(open_workspace(study.model_dump_json(), "cpu").dense_model(weights_in(tmp_path)))
    assert sum(passes.counts[dense].values()) == NUM_IMAGES

    rows = small.timeless_table(tmp_path)
    for file in tmp_path.glob("trials/random*.done"):
        file.unlink()
    with watched(study) as again:
        assert small.run(study, tmp_path)[0] == 0
    assert dense not in again.counts
    assert len([counts for counts in again.counts.values() if len(counts) == NUM_IMAGES]) == 2
    assert small.timeless_table(tmp_path) == rows


def weights_in(folder: Path) -> bytes:
    return (folder / "cache" / "dense.safetensors").read_bytes()


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    study, run = parse_study(SETTINGS), RunDirectory(tmp_path)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    progress = ProgressReporter(Console(file=io.StringIO()))
    return RunContext(study=study, workspace=workspace, run=run, executor=LocalExecutor(study, run), progress=progress)


def test_a_run_directory_without_logits_gets_them_without_training(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of earlier versions have none, and a large file may be deleted to save space."""
    first = obtain_dense(context)
    context.run.delete("cache/dense_logits.safetensors")
    monkeypatch.setattr(dense_stage, "_prepare", None)
    with watched(context.study) as passes:
        second = obtain_dense(context)
        third = obtain_dense(context)
    assert [set(counts.values()) for counts in passes.counts.values()] == [{1}]
    assert (second.weights, second.accuracy) == (first.weights, first.accuracy)
    for found in (second, third):
        assert (found.logits.numbers == first.logits.numbers).all()
        assert (found.logits.values == first.logits.values).all()


def test_logits_are_those_of_the_samples_by_their_index(context: RunContext) -> None:
    dense = obtain_dense(context)
    model = context.workspace.dense_model(dense.weights)
    dataset = context.workspace.source.dataset("test")
    assert dense.logits.numbers.tolist() == context.workspace.roles.evaluation.tolist()
    for place, number in enumerate(dense.logits.numbers.tolist()[::7]):
        image, _ = dataset[number]
        with torch.no_grad():
            expected = model(image[None])[0]
        found = torch.from_numpy(dense.logits.values[7 * place])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def of_study(context: RunContext, **sections: Any) -> RunContext:
    """The run directory with another study."""
    study = parse_study({**SETTINGS, **sections})
    workspace = open_workspace(study.model_dump_json(), "cpu")
    return replace(context, study=study, workspace=workspace, executor=LocalExecutor(study, context.run))


def test_another_precision_is_another_score_of_the_same_weights(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"model": {**SETTINGS["model"], "train": {"epochs": 1, "seed": 3}}}
    exact = obtain_dense(of_study(context, **trained))
    assert len(exact.history) == 1
    monkeypatch.setattr(dense_stage, "_prepare", None)
    evaluation = {**SETTINGS["evaluation"], "precision": "bfloat16"}
    rounded = obtain_dense(of_study(context, **trained, evaluation=evaluation))
    assert rounded.history == exact.history
    assert rounded.weights == exact.weights
    assert (rounded.logits.values != exact.logits.values).any()
    assert context.run.read_json("cache/dense.json")["precision"] == "bfloat16"


def test_other_evaluation_samples_are_another_score_of_the_same_weights(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = obtain_dense(context)
    monkeypatch.setattr(dense_stage, "_prepare", None)
    fewer = obtain_dense(of_study(context, evaluation={**SETTINGS["evaluation"], "samples": 20}))
    assert fewer.accuracy.num_samples == 20
    assert (fewer.logits.values == first.logits.values[:20]).all()


@pytest.mark.parametrize("change", ["training", "file"])
def test_other_weights_are_not_taken_for_those_of_the_study(context: RunContext, change: str) -> None:
    trained = {"model": {**SETTINGS["model"], "train": {"epochs": 1, "seed": 3}}}
    first = obtain_dense(of_study(context, **trained))
    evaluation = {**SETTINGS["evaluation"], "precision": "bfloat16"}
    if change == "training":
        trained["model"]["train"]["seed"] = 4
    else:  # replaced by hand, after which nothing vouches for it
        file = Path(context.run.location) / "cache" / "dense.safetensors"
        file.write_bytes(first.weights[:-4] + b"\0\0\0\0")
    second = obtain_dense(of_study(context, **trained, evaluation=evaluation))
    assert (second.weights == first.weights) is (change == "file")
