"""Calibration by actors: the same bits whatever the number of actors, and an error that says where."""

from __future__ import annotations

import io
import os
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import small_study as small
from rich.console import Console

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import CalibrationError, ClusterError, DataError
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.measures import measure_shards
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.executor import connect
from cleanai_ray.models import build_model
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.ray


def calibration(study, weights, folder, *, on_shard=lambda done: None, **resources):
    """Calibrate on actors; return the statistics, and for each shard that came: done so far, of how many, images."""
    changed = study.model_copy(update={"resources": study.resources.model_copy(update=resources)})
    run, counted = RunDirectory(folder), []

    class Counting(ProgressReporter):
        @contextmanager
        def shards(self, name, num_shards):
            yield lambda *numbers: (counted.append(numbers), on_shard(numbers[0]))

    progress, workspace = Counting(Console(file=io.StringIO())), open_workspace(study.model_dump_json(), "cpu")
    with connect(changed, run, None) as executor:
        context = RunContext(study=changed, workspace=workspace, run=run, executor=executor, progress=progress)
        dense = DenseWeights(content=executor.share(weights), digest="digest")
        statistics, moments = measure_shards(context, dense)
    assert statistics is not None
    assert moments is not None
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
        assert value.histogram.num_bins == 8
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


class Killer(threading.Thread):
    """Kills processes of this process's own Ray that compute a shard; there may be another Ray on the machine.

    Args:
        most: Number of processes to kill.
    """

    def __init__(self, most: int) -> None:
        super().__init__(daemon=True)
        self.killed: set[int] = set()
        self._most = most
        self._over = threading.Event()

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while len(self.killed) < self._most and not self._over.wait(0.001):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    found = int(path.parent.name)
                    if path.read_bytes().startswith(b"ray::CalibrationActor.compute") and _is_mine(found):
                        os.kill(found, signal.SIGKILL)
                        self.killed.add(found)
                        break


def _is_mine(process: int) -> bool:
    """Whether a Ray worker's parent, the raylet, is a child of this process."""
    for _ in range(2):
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == os.getpid()


@pytest.mark.slow
def test_an_actor_killed_in_the_middle_of_a_shard_changes_no_bit(ray_session, tmp_path):
    study = parse_study(small.SMALL)
    weights = safetensors_bytes(build_model(study.model))
    with Killer(most=1) as killer:
        statistics, counted = calibration(study, weights, tmp_path, calibration_actors=2)
    assert len(killer.killed) == 1
    assert sorted(samples for _, _, samples in counted) == [8, 64, 64, 64], "no shard counts twice"
    workspace = open_workspace(study.model_dump_json(), "cpu")
    assert statistics.to_bytes() == calibrate_locally(workspace, workspace.dense_model(weights)).to_bytes()


@pytest.mark.slow
def test_a_shard_whose_process_always_dies_is_tried_three_times(ray_session, tmp_path):
    data = {**small.SMALL["data"], "calibration": {"samples": 8, "shard_size": 8}}
    study = parse_study({**small.SMALL, "data": data})
    weights = safetensors_bytes(build_model(study.model))
    with Killer(most=10) as killer, pytest.raises(ClusterError) as caught:
        calibration(study, weights, tmp_path, calibration_actors=1)
    assert all(fact in str(caught.value) for fact in ("shard 0", "calibration", "3 times", "memory"))
    assert len(killer.killed) == 3


def test_shards_that_were_finished_are_not_computed_again(ray_session, tmp_path):
    study = parse_study(small.SMALL)
    weights = safetensors_bytes(build_model(study.model))

    class DriverGone(Exception):
        pass

    def stop(done: int) -> None:
        if done == 2:
            raise DriverGone

    with pytest.raises(DriverGone):
        calibration(study, weights, tmp_path, on_shard=stop, calibration_actors=1)
    kept = {path.name for path in (tmp_path / "cache" / "shards" / "calibrate").glob("*.safetensors")}
    assert {"000000.safetensors", "000001.safetensors"} <= kept
    statistics, counted = calibration(study, weights, tmp_path, calibration_actors=1)
    assert sum(samples for _, _, samples in counted) == 200 - 64 * len(kept)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    assert statistics.to_bytes() == calibrate_locally(workspace, workspace.dense_model(weights)).to_bytes()
    assert not (tmp_path / "cache" / "shards").exists()
