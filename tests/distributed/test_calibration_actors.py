"""Calibration by actors: the same bits whatever the number of actors, and an error that says where."""

from __future__ import annotations

import io
from contextlib import contextmanager

import distributed.conftest as small
import pytest
import ray
from rich.console import Console

from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.calibration_shards import calibrate_locally
from cleanai_ray.distributed.calibration import calibrate_on_actors, calibration_pool
from cleanai_ray.distributed.cluster import connected
from cleanai_ray.distributed.progress import Narrator
from cleanai_ray.distributed.writer import run_files
from cleanai_ray.errors import CalibrationError, DataError
from cleanai_ray.evaluation.weights import safetensors_bytes
from cleanai_ray.models import build_model
from cleanai_ray.study import parse_study
from cleanai_ray.workspace import open_workspace

pytestmark = pytest.mark.ray


def calibration(study, weights, folder, **resources):
    """Calibrate on actors; return the statistics, and how many shards were done after each that was."""
    changed = study.model_copy(update={"resources": study.resources.model_copy(update=resources)})
    run, counted = RunDirectory(folder), []

    class Counting(Narrator):
        @contextmanager
        def shards(self, name, num_shards):
            yield lambda done, total, samples: counted.append((done, total, samples))

    narrator = Counting(Console(file=io.StringIO()))
    with (
        connected(None) as cluster,
        run_files(changed, run, cluster) as (files, _),
        calibration_pool(changed, cluster, run, files, narrator) as pool,
    ):
        statistics = calibrate_on_actors(changed, ray.put(weights), "digest", run, pool)
    return statistics, counted


def test_the_number_of_actors_does_not_change_a_bit(ray_session, tmp_path):
    study = parse_study(small.SMALL)
    weights = safetensors_bytes(build_model(study.model))
    found = [calibration(study, weights, tmp_path / str(n), calibration_actors=n) for n in (1, 2)]
    workspace = open_workspace(study.model_dump_json(), "cpu")
    alone = calibrate_locally(workspace, workspace.dense_model(weights)).to_bytes()
    # 200 samples in shards of 64 are 4 shards.
    for statistics, counted in found:
        assert statistics.to_bytes() == alone
        assert [(done, total) for done, total, _ in counted] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert sorted(samples for _, _, samples in counted) == [8, 64, 64, 64]
        assert statistics.num_samples == 200


def test_sections_are_counted_in_a_second_pass_over_the_range_of_all_shards(ray_session, tmp_path):
    sweep = {**small.SMALL["sweep"], "methods": ["coverage", "hessian"], "coverage_metrics": ["entropy"]}
    data = {**small.SMALL["data"], "calibration": {"samples": 40, "shard_size": 16, "top_k": 3, "sections": 8}}
    study = parse_study({**small.SMALL, "sweep": sweep, "data": data})
    weights = safetensors_bytes(build_model(study.model))
    statistics, counted = calibration(study, weights, tmp_path, calibration_actors=2)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    assert statistics.to_bytes() == calibrate_locally(workspace, workspace.dense_model(weights)).to_bytes()
    assert [(done, total) for done, total, _ in counted] == 2 * [(1, 3), (2, 3), (3, 3)]
    assert statistics.top_k == 3
    assert statistics.squared_gradients
    for value in statistics.inputs.values():
        assert value.histogram.num_sections == 8
        assert (value.histogram.counts.sum(dim=1) == value.num_positions).all()


def test_a_finished_calibration_is_read_back(ray_session, tmp_path):
    study = parse_study(small.SMALL)
    weights = safetensors_bytes(build_model(study.model))
    first, _ = calibration(study, weights, tmp_path)
    second, counted = calibration(study, weights, tmp_path)
    assert counted == []
    assert second.to_bytes() == first.to_bytes()


def test_an_error_in_an_actor_stops_the_calibration_and_says_which_samples(ray_session, tmp_path):
    study = parse_study(small.SMALL)
    model = build_model(study.model)
    model.conv1.weight.data.fill_(float("nan"))
    with pytest.raises((CalibrationError, DataError), match="not finite"):
        calibration(study, safetensors_bytes(model), tmp_path)
    assert not (tmp_path / "cache" / "calibration.safetensors.done").exists()
