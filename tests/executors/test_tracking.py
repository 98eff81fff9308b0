"""Trackers: each trial of a study is a run of its own, whatever Tune makes of trials that share work."""

from __future__ import annotations

import copy
import importlib.util
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.utils.callback import _create_default_callbacks

from cleanai_ray import __version__
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.executors.finished import report_key
from cleanai_ray.executors.history import _comparable
from cleanai_ray.executors.local import LocalExecutor
from cleanai_ray.executors.ray.tracking import TrialByTrial, check_trackers, tracking_callbacks
from cleanai_ray.executors.ray.trial_config import config_of
from cleanai_ray.executors.trial_work import TrialGroup
from cleanai_ray.storage.run_directory import RunDirectory

DOCUMENT: dict[str, Any] = {
    "name": "tracked",
    "question": "Which?",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {
        "methods": ["magnitude"],
        "ratios": [0.3],
        "modes": ["local"],
        "quantization": ["none", "bf16"],
    },
}


def study_with(**tracking: Any) -> Study:
    return parse_study({**copy.deepcopy(DOCUMENT), "tracking": tracking})


TRIALS = study_with().trials()
PLAIN, BF16 = (trial.trial_id for trial in TRIALS)


class TuneTrial:
    """What Tune gives to its loggers, as far as they ask."""

    trial_id = "abc_00001"
    local_path = "/nowhere"
    experiment_dir_name = "tune"

    def __init__(self) -> None:
        self.config = {"trials": config_of(TrialGroup(owner=TRIALS[0], trials=TRIALS))}


class Recorder(LoggerCallback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.configs: dict[str, dict[str, Any]] = {}

    def setup(self, *args: Any, **info: Any) -> None:
        self.told.append(("setup",))

    def log_trial_start(self, trial: Any) -> None:
        self.told.append(("start", str(trial)))
        self.configs[trial.trial_id] = trial.config

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.told.append(("result", str(trial), result))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.told.append(("end", str(trial), failed))


def result(iteration: int, **values: Any) -> dict[str, Any]:
    """A result as Tune hands it to loggers."""
    return {"training_iteration": iteration, "pid": 7, "config": {}, "done": False, "timestamp": 1, **values}


def reported(*, status: str = "ok") -> Recorder:
    """Report a group of two trials: two epochs, then the end of both."""
    recorder, trial = Recorder(), TuneTrial()
    callback = TrialByTrial(recorder, "mlflow")
    callback.setup()
    callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], trial, result(1, epoch=1, train_loss=0.5))
    callback.on_trial_result(0, [], trial, result(2, epoch=2, train_loss=0.25))
    callback.on_trial_result(0, [], trial, result(3, name=PLAIN, status="ok", accuracy=0.9))
    callback.on_trial_result(0, [], trial, result(4, name=BF16, status=status, accuracy=0.8))
    callback.on_trial_complete(0, [], trial)
    return recorder


def test_trials_that_share_work_are_runs_of_their_own() -> None:
    recorder = reported()
    assert recorder.told == [
        ("setup",),
        ("start", PLAIN),
        ("result", PLAIN, {"training_iteration": 1, "epoch": 1, "train_loss": 0.5}),
        ("result", PLAIN, {"training_iteration": 2, "epoch": 2, "train_loss": 0.25}),
        ("result", PLAIN, {"training_iteration": 3, "accuracy": 0.9}),
        ("end", PLAIN, False),
        ("start", BF16),
        ("result", BF16, {"training_iteration": 4, "accuracy": 0.8}),
        ("end", BF16, False),
    ]
    (plain, bf16) = recorder.configs.values()
    assert (plain["method"], plain["ratio"], plain["mode"], plain["quantization"]) == (
        "magnitude",
        0.3,
        "local",
        "none",
    )
    assert bf16["quantization"] == "bf16"
    assert len(recorder.configs) == 2, "a tracker knows runs by trial_id"


def test_a_trial_that_failed_ends_as_failed() -> None:
    assert reported(status="failed").told[-1] == ("end", BF16, True)


def test_trials_whose_process_died_end_as_failed() -> None:
    recorder, trial = Recorder(), TuneTrial()
    callback = TrialByTrial(recorder, "mlflow")
    callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], trial, result(1, name=PLAIN, status="ok", accuracy=0.9))
    callback.on_trial_start(0, [], trial)  # the process died, and another one goes on
    callback.on_trial_error(0, [], trial)
    assert [entry[:2] for entry in recorder.told if entry[0] != "result"] == [
        ("start", PLAIN),
        ("end", PLAIN),
        ("start", BF16),
        ("end", BF16),
    ]
    assert recorder.told[-1] == ("end", BF16, True)


def test_a_tracker_that_fails_is_left_alone_and_the_study_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            raise ConnectionError("no route to host")

    recorder, trial = Broken(), TuneTrial()
    callback = TrialByTrial(recorder, "wandb")
    with caplog.at_level(logging.WARNING):
        callback.on_trial_start(0, [], trial)
        for iteration in (1, 2):
            callback.on_trial_result(0, [], trial, result(iteration, epoch=iteration))
        callback.on_trial_complete(0, [], trial)
        callback.on_experiment_end([])
    (message,) = caplog.messages
    assert "tracking.wandb" in message
    assert "no route to host" in message
    assert [entry[0] for entry in recorder.told] == ["start"]


def test_a_tracker_that_cannot_be_reached_is_one_sentence() -> None:
    class Unreachable(Recorder):
        def setup(self, *args: Any, **info: Any) -> None:
            raise ValueError("No API key\nfound")

    with pytest.raises(StudyError, match=r"tracking\.wandb: the tracker cannot be reached: No API key found"):
        TrialByTrial(Unreachable(), "wandb").setup()


def test_tune_may_pickle_the_callback() -> None:
    callback = TrialByTrial(Recorder(), "mlflow")
    callback.on_trial_start(0, [], TuneTrial())
    restored = pickle.loads(pickle.dumps(callback))
    restored.on_trial_result(0, [], TuneTrial(), result(1, epoch=1))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda given, *more: None if given == name else found(given, *more)
    )
    with pytest.raises(StudyError) as caught:
        check_trackers(study_with(**{name: "there"}), RunDirectory(tmp_path))
    for words in (f"tracking.{name} is 'there'", f"package {name} is not installed", "cleanai-ray[tracking]"):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_empty_address_is_refused(name: str) -> None:
    with pytest.raises(StudyError, match=rf"tracking\.{name}"):
        study_with(**{name: ""})


def test_event_files_are_tunes_own_unless_the_study_wants_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for wanted in (True, False):
        callbacks = _create_default_callbacks([*tracking_callbacks(study_with(tensorboard=wanted), run)])
        (tensorboard,) = [one for one in callbacks if isinstance(one, TBXLoggerCallback)]
        assert (type(tensorboard) is TBXLoggerCallback) == wanted
    tensorboard.on_trial_start(0, [], TuneTrial())
    tensorboard.on_trial_result(0, [], TuneTrial(), result(1, epoch=1))
    tensorboard.on_trial_complete(0, [], TuneTrial())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_computed_again_for_another_tracker(tmp_path: Path) -> None:
    first, second = study_with(), study_with(mlflow="there", tensorboard=False)
    assert report_key(first, RunDirectory(tmp_path), "dense") == report_key(second, RunDirectory(tmp_path), "dense")
    assert _comparable(first) == _comparable(second)


def test_the_local_executor_says_that_it_reports_nothing(tmp_path: Path) -> None:
    study = study_with(mlflow="there")
    (notice,) = LocalExecutor(study, RunDirectory(tmp_path)).notices(study)
    assert notice.startswith("tracking.mlflow: nothing is reported")
    assert LocalExecutor.notices(LocalExecutor(study_with(), RunDirectory(tmp_path)), study_with()) == []


def test_weights_and_biases_gets_project_group_and_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the interface of Tune's callback; the package itself starts a process of its own for each run."""
    import ray.air.integrations.wandb as integration

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "wandb" or found(name, *more))
    monkeypatch.setattr(integration, "wandb", object())
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    run = RunDirectory(tmp_path)
    check_trackers(study_with(wandb="pruned"), run)
    (callback,) = tracking_callbacks(study_with(wandb="pruned"), run)
    logger = callback._logger
    assert (logger.project, logger.group) == ("pruned", "tracked")
    said = {"tags": ["tracked", f"cleanai-ray {__version__}"], "notes": "Which?", "mode": "offline"}
    assert logger.kwargs == {**said, "dir": str(tmp_path)}
    begun = []
    monkeypatch.setattr(logger, "_start_logging_actor", lambda trial, exclude, **given: begun.append(given))
    monkeypatch.setattr(integration, "_clean_log", lambda given, **options: given)
    callback.on_trial_start(0, [], TuneTrial())
    assert (begun[0]["name"], begun[0]["id"]) == (PLAIN, f"abc_00001-{PLAIN}")
    assert begun[0]["config"]["method"] == "magnitude"
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    (callback,) = tracking_callbacks(study_with(wandb="pruned"), run)
    assert callback._logger.kwargs == {**said, "entity": "team"}


def store(folder: Path) -> str:
    """Return the address of a store of MLflow in a folder, which needs neither a server nor a database."""
    return (folder / "mlruns").as_uri()


def found_runs(folder: Path) -> list[Any]:
    """Return the runs that MLflow finds by the name of the study and a parameter."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store(folder))
    experiment = client.get_experiment_by_name("tracked")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "params.method = 'magnitude'"))


def test_mlflow_finds_each_trial_by_name_tag_and_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'cleanai-ray[tracking]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    study = study_with(mlflow=store(tmp_path))
    check_trackers(study, RunDirectory(tmp_path / "run"))
    (callback,) = tracking_callbacks(study, RunDirectory(tmp_path / "run"))
    trial = TuneTrial()
    callback.setup()
    callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], trial, result(1, epoch=1, train_loss=0.5))
    callback.on_trial_result(0, [], trial, result(2, name=PLAIN, status="ok", accuracy=0.9, macs=7))
    callback.on_trial_result(0, [], trial, result(3, name=BF16, status="failed"))
    callback.on_trial_complete(0, [], trial)
    callback.on_experiment_end([trial])
    runs = {run.info.run_name: run for run in found_runs(tmp_path)}
    assert runs.keys() == {PLAIN, BF16}
    assert (runs[PLAIN].info.status, runs[BF16].info.status) == ("FINISHED", "FAILED")
    assert runs[PLAIN].data.params["ratio"] == "0.3"
    metrics = {"accuracy": 0.9, "macs": 7.0, "epoch": 1.0, "train_loss": 0.5, "training_iteration": 2.0}
    assert runs[PLAIN].data.metrics == metrics
    tags = runs[PLAIN].data.tags
    assert (tags["study"], tags["question"], tags["cleanai_ray"]) == ("tracked", "Which?", __version__)
    assert tags["run_directory"] == str(tmp_path / "run")


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_on_ray_reports_to_mlflow_and_wandb(
    ray_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Ray that was there before, whose processes have an environment of their own."""
    for package in ("mlflow", "wandb"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'cleanai-ray[tracking]'")
    import small_study as small

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    changes: dict[str, Any] = {
        "repair": {"compensation": "none", "batch_norm": "none"},
        "finetune": {"epochs": 1},
        "evaluation": {"samples": 100, "latency": None},
        "tracking": {"mlflow": store(tmp_path), "wandb": "pruned", "tensorboard": False},
    }
    failed, said = small.run(parse_study({**copy.deepcopy(DOCUMENT), **changes}), tmp_path / "run", "ray")
    assert failed == 0, said
    runs = {run.info.run_name: run for run in found_runs(tmp_path)}
    assert runs.keys() == {PLAIN, BF16}
    assert all(run.info.status == "FINISHED" and "accuracy" in run.data.metrics for run in runs.values())
    assert list((tmp_path / "run" / "tune").rglob("events.out.tfevents.*")) == []
    offline = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert sorted(file.stem.partition("_00000-")[2] for file in offline) == sorted([PLAIN, BF16])
