"""Statistics and second moments of a study come out of one pass, and are what two passes give."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small_study as small
import torch
from rich.console import Console

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.local import LocalExecutor
from cleanai_ray.executors.measures import measure_shards
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.models import build_model
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.planning import check_study
from cleanai_ray.stages.shard_measures import MOMENTS, STATISTICS, ShardMeasurer, ShardMeasures, shards_of
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.statistics.merging import merge_tree
from cleanai_ray.storage.run_directory import RunDirectory

BATCH = 16


def study_of(methods: list[str], compensation: str = "closed_form", **calibration: Any) -> Study:
    sweep = {"methods": methods, "ratios": [0.3], "coverage_metrics": ["normalized_mean"]}
    draw = {"samples": 100, "shard_size": 48, **calibration}
    data = {"name": "digits", "batch_size": BATCH, "calibration": draw}
    return parse_study({**small.SMALL, "data": data, "sweep": sweep, "repair": {"compensation": compensation}})


def context_of(study: Study, folder: Any) -> tuple[RunContext, DenseWeights]:
    run, progress = RunDirectory(folder), ProgressReporter(Console(file=io.StringIO()))
    executor = LocalExecutor(study, run)
    context = RunContext(
        study=study, workspace=check_study(study), run=run, executor=executor, progress=progress, folder="cache"
    )
    weights = safetensors_bytes(build_model(study.model, seed=0))
    return context, DenseWeights(content=executor.share(weights), digest="digest")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every forward pass of a dense model that a workspace builds."""
    seen: list[int] = []
    build = Workspace.dense_model

    def watched(self: Workspace, weights: bytes) -> torch.nn.Module:
        model = build(self, weights)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return model

    monkeypatch.setattr(Workspace, "dense_model", watched)
    return seen


def sizes(*shards: int) -> list[int]:
    """Images of each batch of shards."""
    return [min(BATCH, shard - start) for shard in shards for start in range(0, shard, BATCH)]


def test_statistics_and_moments_take_one_pass(passes: list[int], tmp_path: Any) -> None:
    context, dense = context_of(study_of(["coverage", "taylor"]), tmp_path)
    statistics, moments = measure_shards(context, dense)
    assert statistics is not None
    assert moments is not None
    assert statistics.num_samples == 100
    assert statistics.gradients
    assert [size for size in passes if size > 2] == sizes(48, 48, 4)  # The graph is traced on one image and on two.


def test_histograms_take_a_second_pass(passes: list[int], tmp_path: Any) -> None:
    study = study_of(["coverage"])
    sweep = study.sweep.model_copy(update={"coverage_metrics": ("entropy",)})
    context, dense = context_of(study.model_copy(update={"sweep": sweep}), tmp_path)
    statistics, _ = measure_shards(context, dense)
    assert statistics is not None
    assert all(value.histogram is not None for value in statistics.inputs.values())
    assert [size for size in passes if size > 2] == 2 * sizes(48, 48, 4)


def test_a_study_that_reads_one_of_the_two_measures_that_alone(passes: list[int], tmp_path: Any) -> None:
    context, dense = context_of(study_of(["coverage"], "none"), tmp_path / "statistics")
    assert measure_shards(context, dense)[1] is None
    assert passes == sizes(48, 48, 4)
    passes.clear()
    context, dense = context_of(study_of(["magnitude"]), tmp_path / "moments")
    statistics, moments = measure_shards(context, dense)
    assert statistics is None
    assert moments is not None
    # Of positions 0 to 47 nine are held back (4, 9, ..., 44), of 48 to 95 ten (49, ..., 94), and 99.
    assert sum(size for size in passes if size > 2) == 39 + 38 + 3


def test_what_is_there_is_not_measured_again(passes: list[int], tmp_path: Any) -> None:
    context, dense = context_of(study_of(["coverage"], "none"), tmp_path)
    statistics, _ = measure_shards(context, dense)
    passes.clear()
    both, dense = context_of(study_of(["coverage"]), tmp_path)
    again, moments = measure_shards(both, dense)
    assert again is not None
    assert statistics is not None
    assert again.to_bytes() == statistics.to_bytes()
    assert moments is not None
    assert sum(size for size in passes if size > 2) == 80
    passes.clear()
    found = measure_shards(both, dense)
    assert passes == []
    assert [value is not None and value.to_bytes() for value in found] == [again.to_bytes(), moments.to_bytes()]


def measured(study: Study, *kinds: str) -> ShardMeasures:
    workspace = open_workspace(study.model_dump_json(), "cpu")
    measurer = ShardMeasurer(workspace, build_model(study.model, seed=0).eval(), *kinds)
    return merge_tree([measurer.shard(number) for number in range(len(shards_of(workspace, *kinds)))])


def assert_close(found: ConsumerMoments | None, expected: ConsumerMoments) -> None:
    assert found is not None
    assert set(found.layers) == set(expected.layers)
    for name, value in expected.layers.items():
        assert found[name].count == value.count
        for field in ("mean", "scatter"):
            mine, other = getattr(found[name], field), getattr(value, field)
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max())), name


@pytest.mark.parametrize(
    ("methods", "limit"),
    [(["coverage"], 2048), (["coverage"], 60), (["coverage"], 5), (["taylor", "hessian"], 60)],
)
def test_one_pass_gives_what_two_give(methods: list[str], limit: int) -> None:
    """Also where gradients are taken of the pass, and, sample by sample, of further ones, which give no moments."""
    study = study_of(methods, second_moment_samples=limit, positions_per_sample=7)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    model = build_model(study.model, seed=0).eval()
    found = measured(study, STATISTICS, MOMENTS)
    assert found.statistics is not None
    assert found.statistics.to_bytes() == calibrate_locally(workspace, model).to_bytes()
    # All images that give moments in one batch, numbered from 0: the positions drawn are those of each image's number.
    positions = np.arange(min(limit, 100))
    working = positions[~is_held_back(positions)]
    (batch,) = workspace.batches("calibration", positions=working, batch_size=100)
    features = ShardMeasurer(workspace, model, MOMENTS)._features
    expected = collect_moments(model, [batch], layers=list(features), features=features, positions_per_sample=7)
    assert_close(found.moments, expected)
    assert_close(measured(study, MOMENTS).moments, expected)


def lacking(gone: np.ndarray) -> Callable[..., Any]:
    """`Workspace.batches` of a data set of whose calibration samples some cannot be read."""
    read = Workspace.batches

    def some(self: Workspace, role: str, *, positions: np.ndarray, **options: Any) -> Any:
        for start in range(0, len(positions), BATCH):
            chunk = positions[start : start + BATCH]
            for position in np.intersect1d(chunk, gone):
                split, index = self.roles.calibration_split, int(self.roles.calibration[position])
                self.unreadable._found[self.source.describe(split, index)] = "is gone"
            if len(left := np.setdiff1d(chunk, gone)):
                yield from read(self, role, positions=left, **options)

    return some


def test_samples_that_cannot_be_read_do_not_shift_which_samples_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that lacks samples, and one that is missing as a whole."""
    study = study_of(["coverage"], positions_per_sample=64)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    model = build_model(study.model, seed=0).eval()
    gone = np.array([2, 3, 5, *range(16, 32), 50])
    readable = np.setdiff1d(np.arange(100), gone)
    read = Workspace.batches
    monkeypatch.setattr(Workspace, "batches", lacking(gone))
    workspace.unreadable._found.clear()
    found = measured(study, STATISTICS, MOMENTS)
    workspace.unreadable._found.clear()
    monkeypatch.setattr(Workspace, "batches", read)
    assert found.statistics is not None
    assert found.statistics.num_samples == 80
    (batch,) = workspace.batches("calibration", positions=readable[~is_held_back(readable)], batch_size=100)
    features = ShardMeasurer(workspace, model, MOMENTS)._features
    expected = collect_moments(model, [batch], layers=list(features), features=features)
    assert_close(found.moments, expected)


@pytest.mark.parametrize("gone", [[], [2, 3, 5, *range(16, 32), 50]])
def test_batches_in_pieces_give_the_same_moments(monkeypatch: pytest.MonkeyPatch, gone: list[int]) -> None:
    """After memory has run out, a batch of the study comes in pieces; some of its samples may be missing."""
    study = study_of(["coverage"], positions_per_sample=64)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    monkeypatch.setattr(Workspace, "batches", lacking(np.array(gone, dtype=int)))
    whole = measured(study, STATISTICS, MOMENTS)
    workspace.unreadable._found.clear()
    monkeypatch.setattr(process_limit, "size", 5)
    assert max(len(images) for images, _ in workspace.batches("calibration", positions=np.arange(48))) <= 5
    workspace.unreadable._found.clear()
    pieces = measured(study, STATISTICS, MOMENTS)
    workspace.unreadable._found.clear()
    assert whole.moments is not None
    assert_close(pieces.moments, whole.moments)
    assert pieces.statistics is not None
    assert whole.statistics is not None
    assert pieces.statistics.num_samples == whole.statistics.num_samples == 100 - len(gone)


def test_measurements_of_shards_are_added_up_and_written_without_loss() -> None:
    study = study_of(["coverage"], second_moment_samples=48)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    measurer = ShardMeasurer(workspace, build_model(study.model, seed=0).eval(), STATISTICS, MOMENTS)
    first, second = measurer.shard(0), measurer.shard(1)
    assert first.moments is not None
    assert second.moments is None
    for value in (first, second, first + second, second + first):
        assert ShardMeasures.from_bytes(value.to_bytes()).to_bytes() == value.to_bytes()
    for total in (first + second, second + first):
        assert total.moments is not None
        assert total.moments.to_bytes() == first.moments.to_bytes()
        assert total.statistics is not None
        assert total.statistics.num_samples == 96
