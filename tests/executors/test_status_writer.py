"""A study that is watched: status.json while it runs and after it, the metrics port, and the dashboard for them."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import small_study as small
from rich.console import Console

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.evaluation.accuracy import Accuracy
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.metrics import METRICS, StatusGauges
from cleanai_ray.executors.status_writer import StatusWriter, status_written
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import STATUS_FILE, read_status
from cleanai_ray.tasks.score import TaskScore

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "study.json"
DENSE = Accuracy(accuracy=0.75, top5=1.0, loss=1.0, num_samples=4, class_correct=(2, 1), class_total=(2, 2))
SAMPLE = re.compile(r"^ray_(cleanai_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def quiet() -> ProgressReporter:
    return ProgressReporter(Console(file=io.StringIO()))


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"\bray_(\w+)", query)}
    assert shown == set(METRICS)
    asked = set(re.findall(r"ray_(\w+)", json.dumps(dashboard["templating"])))
    assert asked <= set(METRICS)
    for query in queries:
        grouped = {label for labels in re.findall(r"by \((.*?)\)", query) for label in labels.split(", ")}
        for name in re.findall(r"\bray_(\w+)", query):
            assert grouped == {"study", *METRICS[name].tags}


def test_what_the_progress_is_told_is_written_down(tmp_path):
    run = RunDirectory(tmp_path)
    progress = quiet()
    study = parse_study(small.SMALL)  # Three trials.
    with status_written(study, run, progress):
        first = read_status(run)
        assert (first.study, first.state, first.trials_total, first.trials_done) == ("small", "running", 3, 0)
        with progress.stage("dense model"):
            assert read_status(run).stage == "dense model"
        progress.dense(DENSE)
        with progress.stage("calibration"), progress.shards("calibration", 2) as on_shard:
            on_shard(1, 2, 10)
        with progress.stage("second moments"):
            found = read_status(run)
        assert found.stage == "second moments"
        assert found.accuracy_dense == 0.75
        assert found.shards_done is None
        progress.complete([{"trial_id": "a", "accuracy": 0.5, "macs": 9, "status": "ok"}], 3)
        state = SweepState(total=2, workers=1)
        with progress.sweep(state) as refresh:
            state.running = 1
            state.finish({"status": "failed"})
            refresh()
    last = read_status(run)
    assert (last.state, last.error, last.stage) == ("finished", "", "trials")
    assert (last.trials_done, last.trials_running, last.trials_failed) == (1, 0, 1)
    assert (last.best, last.best_accuracy, last.metric) == ("a", 0.5, "accuracy")
    assert (last.best_score, last.score_dense) == (None, None)
    assert last.started == first.started < last.updated


def test_the_score_of_another_task_is_written_with_its_name(tmp_path: Path) -> None:
    run, progress = RunDirectory(tmp_path), quiet()
    with status_written(parse_study(small.SMALL), run, progress):
        progress.dense(TaskScore("perplexity", 5.0, 0.2, 1.6, 40))
        row = {"trial_id": "a", "accuracy": 0.125, "macs": 9, "status": "ok", "metric": "perplexity", "score": 8.0}
        progress.complete([row], 3)
    last = read_status(run)
    assert (last.metric, last.best_score, last.score_dense) == ("perplexity", 8.0, 5.0)
    assert (last.best_accuracy, last.accuracy_dense) == (0.125, 0.2)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PruningError("layer 'fc'\nhas no channels"), "layer 'fc' has no channels"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_study_that_raises_is_marked_as_failed_and_raises(tmp_path, error, sentence):
    run, progress = RunDirectory(tmp_path), quiet()
    with pytest.raises(type(error)), status_written(parse_study(small.SMALL), run, progress):
        raise error
    found = read_status(run)
    assert found.state == "failed"
    assert found.error.startswith(sentence)
    with progress.stage("afterwards"):
        assert read_status(run) == found


@pytest.mark.parametrize(("fresh", "how"), [(False, "again to resume"), (True, "again, without --fresh, to resume")])
def test_an_interrupted_study_says_which_command_resumes_it(tmp_path, fresh, how):
    run = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), status_written(parse_study(small.SMALL), run, quiet(), fresh=fresh):
        raise KeyboardInterrupt
    assert read_status(run).error == f"interrupted; run the same command {how}"


def test_a_long_stage_is_heard_of_and_nothing_is_written_after_the_end(tmp_path):
    run = RunDirectory(tmp_path)
    watcher = StatusWriter(parse_study(small.SMALL), run, interval=0.02)
    watcher.start()
    watcher.stage("dense model")
    before = read_status(run)
    while read_status(run).updated == before.updated:  # The test's time limit ends a heart that does not beat.
        time.sleep(0.01)
    watcher.end("finished")
    written = (tmp_path / STATUS_FILE).stat().st_mtime_ns
    time.sleep(0.2)
    assert (tmp_path / STATUS_FILE).stat().st_mtime_ns == written
    assert read_status(run).state == "finished"


def test_a_disk_that_takes_no_status_does_not_stop_the_study(tmp_path, caplog):
    (tmp_path / "file").write_text("where the folder should be")
    progress = quiet()
    with status_written(parse_study(small.SMALL), RunDirectory(tmp_path / "file"), progress):
        with progress.stage("dense model"):
            pass
        with progress.stage("calibration"):
            pass
    (message,) = [record.getMessage() for record in caplog.records]
    assert all(word in message for word in (f"'{STATUS_FILE}'", f"'{tmp_path / 'file'}'", "written"))


def test_monitoring_that_is_away_does_not_end_the_study(tmp_path, caplog):
    def publish(status):
        raise ConnectionError("nobody answers")

    run, progress = RunDirectory(tmp_path), quiet()
    with status_written(parse_study(small.SMALL), run, progress, publish):
        with progress.stage("dense model"):
            pass
        with progress.stage("calibration"):
            pass
    assert read_status(run).state == "finished"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "nobody answers" in message


def scrape(study: str) -> dict[tuple[str, str], float]:
    """The gauges of a study on the metrics port of this node, by name and state."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in SAMPLE.findall(text):
        tags = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if tags["study"] == study:
            found[name, tags.get("state", "")] = float(value)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_every_metric_is_on_the_port_that_ray_exports(ray_session, tmp_path):
    study = parse_study({**small.SMALL, "name": "scraped"})
    progress = quiet()
    expected = {
        ("cleanai_shards_done", ""): 2,
        ("cleanai_shards", ""): 3,
        ("cleanai_trials", "done"): 1,
        ("cleanai_trials", "running"): 0,
        ("cleanai_trials", "failed"): 0,
        ("cleanai_trials", "waiting"): 2,
        ("cleanai_best_accuracy", ""): 0.5,
        ("cleanai_dense_accuracy", ""): 0.75,
    }
    with status_written(study, RunDirectory(tmp_path), progress, StatusGauges().publish):
        progress.dense(DENSE)
        progress.complete([{"trial_id": "a", "accuracy": 0.5, "macs": 9, "status": "ok"}], 3)
        with progress.shards("calibration", 3) as on_shard:
            on_shard(1, 3, 64)
            on_shard(2, 3, 64)
            found: dict[tuple[str, str], float] = {}
            while {name for name, _ in found} != set(METRICS):  # Ray exports every few seconds; the time limit ends it.
                time.sleep(0.5)
                found = scrape("scraped")
    assert found.pop(("cleanai_samples_per_second", "")) > 0
    assert found.pop(("cleanai_seconds_left", "")) > 0
    assert found == expected
