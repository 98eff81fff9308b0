"""Trackers: MLflow, Weights & Biases and TensorBoard, through the callbacks of Ray Tune."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from cleanai_ray import __version__
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.config.tracking import TrackingSection
from cleanai_ray.errors import StudyError
from cleanai_ray.executors.ray.trial_config import group_of
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)
_NOT_OURS = {"config", "date", "done", "hostname", "iterations_since_restore", "name", "node_ip", "pid", "status"}
_NOT_OURS |= {"should_checkpoint", "time_since_restore", "time_this_iter_s", "time_total_s", "timestamp", "trial_id"}
_NOT_OURS |= {"experiment_id", "experiment_tag", "metric"}
"""Values of a result that are Tune's own, or no numbers."""


def require_trackers(tracking: TrackingSection) -> None:
    """Check that the packages of a study's trackers are installed.

    Raises:
        StudyError: When one is missing.
    """
    for name in tracking.services:
        if importlib.util.find_spec(name) is None:
            raise StudyError(
                f"tracking.{name} is '{getattr(tracking, name)}', and the package {name} is not installed: pip install "
                f"'cleanai-ray[tracking]', or tracking.{name}: null"
            )


def check_trackers(study: Study, run: RunDirectory) -> None:
    """Connect to a study's trackers once, before anything is computed.

    Raises:
        StudyError: When a tracker's package is missing, or it cannot be reached.
    """
    for callback in tracking_callbacks(study, run):
        callback.setup()


def tracking_callbacks(study: Study, run: RunDirectory) -> list[tune.Callback]:
    """Return the callbacks that report a study's trials to its trackers.

    Raises:
        StudyError: When a tracker's package is missing.
    """
    require_trackers(study.tracking)
    tags = {"study": study.name, "run_directory": run.location, "cleanai_ray": __version__, "question": study.question}
    found: list[tune.Callback] = []
    if study.tracking.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        found.append(
            TrialByTrial(MLflowLoggerCallback(study.tracking.mlflow, experiment_name=study.name, tags=tags), "mlflow")
        )
    if study.tracking.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        named: dict[str, Any] = {"tags": [study.name, f"cleanai-ray {__version__}"], "notes": study.question}
        # On a cluster, the process that reports has another environment than this one.
        settings = {"mode": os.environ.get("WANDB_MODE"), "entity": os.environ.get("WANDB_ENTITY")}
        named |= {name: value for name, value in settings.items() if value}
        if run.is_local and not os.environ.get("WANDB_DIR"):
            # Its files, which `wandb sync` sends later where there is no internet, would be left in Ray's temporary
            # folder, of which Tune keeps what is there when its own trial ends.
            named["dir"] = str(run.local_path())
        found.append(TrialByTrial(WandbLoggerCallback(study.tracking.wandb, study.name, **named), "wandb"))
    if not study.tracking.tensorboard:
        found.append(_NoEventFiles())
    return found


class TrackedTrial:
    """One trial of a study, as a logger of Tune asks for a trial of Tune's.

    Args:
        trial: The trial.
        tune_trial: The trial of Tune that runs it; it may run several, one after another.
    """

    def __init__(self, trial: Trial, tune_trial: Any) -> None:
        self.name = trial.trial_id
        self.trial_id = f"{tune_trial.trial_id}-{trial.trial_id}"
        given = trial.model_dump(mode="json", exclude_none=True)
        budget, options = given.pop("budget", None), given.pop("options")
        self.config: dict[str, Any] = {**given, **({"budget": str(trial.budget)} if budget else {})}
        self.config |= {f"option_{name}": value for name, value in options.items()}
        self._tune_trial = tune_trial

    def __str__(self) -> str:
        return self.name

    def __getattr__(self, name: str) -> Any:
        """Return what a logger asks of Tune's trial: its folders, for instance."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tune_trial, name)


class TrialByTrial(LoggerCallback):
    """Reports each trial of a study to a logger of Tune, as a run of its own.

    When the tracker fails, the study goes on without it: the run directory has everything.

    Trials that share work are one trial of Tune. What it reports before a trial's end belongs to the first of its
    trials that has not ended; a result with the name of a trial ends it.

    Args:
        logger: The logger.
        key: The key of the study's section `tracking`, for errors.
    """

    def __init__(self, logger: LoggerCallback, key: str) -> None:
        self._logger: LoggerCallback | None = logger
        self._key = key
        self._begun: dict[str, TrackedTrial] = {}
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the logger: Tune pickles its callbacks with the experiment."""
        return {"_logger": None, "_key": self._key, "_begun": {}, "_ended": set()}

    def setup(self, *args: Any, **info: Any) -> None:
        """Connect to the tracker.

        Raises:
            StudyError: When it cannot be reached.
        """
        assert self._logger is not None
        try:
            self._logger.setup(*args, **info)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StudyError(f"tracking.{self._key}: the tracker cannot be reached: {reason}") from error

    def log_trial_start(self, trial: Any) -> None:
        """Begin the run of the first trial that has not ended."""
        left = self._left(trial)
        if left:
            self._run_of(left[0], trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Report the numbers of an epoch or of the end of a trial."""
        own = [one for one in group_of(trial.config).trials if one.trial_id == result.get("name")]
        left = [one for one in own if one.trial_id not in self._ended] if own else self._left(trial)
        if not left:
            return
        tracked = self._run_of(left[0], trial)
        self._tell("log_trial_result", iteration, tracked, numbers_in(result))
        if own:
            self._end(tracked, failed=result.get("status") == schemas.FAILED)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """End the runs of trials whose process ended before it reported them."""
        for one in self._left(trial):
            if failed or one.trial_id in self._begun:
                self._end(self._run_of(one, trial), failed=failed)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Let the logger finish what it still has to send."""
        self._tell("on_experiment_end", trials, **info)

    def _left(self, trial: Any) -> list[Trial]:
        return [one for one in group_of(trial.config).trials if one.trial_id not in self._ended]

    def _run_of(self, one: Trial, trial: Any) -> TrackedTrial:
        """Return the run of a trial, which begins when it is first asked for."""
        if one.trial_id not in self._begun:
            tracked = self._begun[one.trial_id] = TrackedTrial(one, trial)
            self._tell("log_trial_start", tracked)
        return self._begun[one.trial_id]

    def _end(self, tracked: TrackedTrial, *, failed: bool) -> None:
        self._ended.add(tracked.name)
        self._tell("log_trial_end", tracked, failed=failed)

    def _tell(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call a method of the logger; after its first error, the logger is told nothing more."""
        if self._logger is None:
            return
        try:
            getattr(self._logger, method)(*arguments, **named)
        except Exception as error:
            self._logger = None
            reason = " ".join(str(error).split()) or type(error).__name__
            _LOG.warning("tracking.%s: nothing more is reported, since the tracker failed: %s", self._key, reason)


def numbers_in(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a result of Tune that are a study's, and the count of reports, by which trackers order.

    A score other than accuracy has its own name, and `accuracy` is called `merit`: what trials are compared by.
    """
    found = {name: value for name, value in result.items() if name not in _NOT_OURS}
    metric = result.get("metric")
    if metric in (None, "accuracy"):
        return found
    renamed = {name: "merit" + name.removeprefix("accuracy") for name in found if name.startswith("accuracy")}
    renamed["score"] = str(metric).partition(" (")[0]  # trackers take no brackets
    return {renamed.get(name, name): value for name, value in found.items()}


class _NoEventFiles(TBXLoggerCallback):
    """Stands for Tune's own logger of TensorBoard files, which Tune would add, and writes none."""

    def __init__(self) -> None:
        """Make no writer."""

    def log_trial_start(self, trial: Any) -> None:
        """Write nothing."""

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Write nothing."""

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Write nothing."""
