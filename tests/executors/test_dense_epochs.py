"""The epochs of a dense model's training: noted, shown, and no longer told when they are over."""

from __future__ import annotations

import copy
import io
import types
from pathlib import Path
from typing import Any

import pytest
import small_study as small
from rich.console import Console

from cleanai_ray.config.study import parse_study
from cleanai_ray.executors.counts import EpochState
from cleanai_ray.executors.dense_epochs import EPOCHS_FILE, EpochWatch, epochs_shown, note_epoch
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.status_writer import status_written
from cleanai_ray.executors.writer import RunWriter
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import describe, read_status, utc_now


def opened(folder: Path) -> tuple[Any, RunWriter, io.StringIO]:
    """A run directory as the driver has it, the store of its workers, and what is printed."""
    study, said = parse_study(small.SMALL), io.StringIO()
    progress = ProgressReporter(Console(file=said, width=160, highlight=False))
    context = types.SimpleNamespace(study=study, run=RunDirectory(folder), progress=progress)
    return context, RunWriter(str(folder), study), said


def row(epoch: int, **scores: float) -> dict[str, Any]:
    return {"epoch": epoch, "validation_loss": 0.4, **(scores or {"validation_accuracy": 0.875})}


def test_the_time_left_is_that_of_the_epochs_since_the_first_that_was_seen() -> None:
    times = iter([100.0, 130.0])
    state = EpochState(clock=lambda: next(times))
    state.advance(4, 12, "accuracy", 0.5)
    assert state.describe() == "epoch 4 of 12, validation accuracy 50.00%, time left unknown"
    state.advance(6, 12, "accuracy", 0.6)
    assert state.seconds_left == 90.0  # two epochs took 30 s, and six are left


def test_an_epoch_is_told_once_and_never_that_of_another_training(tmp_path: Path) -> None:
    context, store, said = opened(tmp_path)
    watch = EpochWatch(context, "a")
    watch.look()
    note_epoch(store, "b", 9, row(8))
    watch.look()
    assert said.getvalue() == ""
    note_epoch(store, "a", 3, row(1, validation_perplexity=12.3456, validation_merit=-2.5))
    for _ in range(2):
        watch.look()
    assert said.getvalue() == ": epoch 1 of 3, validation perplexity 12.35, time left unknown\n"


def test_the_status_of_a_training_has_its_epochs_until_the_next_stage(tmp_path: Path) -> None:
    context, store, said = opened(tmp_path)
    with status_written(context.study, context.run, context.progress) as writer:
        with context.progress.stage("dense model"), epochs_shown(context, "a"):
            note_epoch(store, "a", 2, row(1))
        writer._write()
        found = read_status(context.run)
        assert (found.epochs_done, found.epochs_total) == (1, 2)
        assert describe(found, utc_now())["epochs"] == "1 of 2 done"
        with context.progress.stage("calibration"):
            assert read_status(context.run).epochs_done is None
    assert "dense model: epoch 1 of 2, validation accuracy 87.50%" in said.getvalue()
    assert not context.run.exists(EPOCHS_FILE)


def test_an_interrupted_training_goes_on_from_the_epoch_that_was_told(tmp_path: Path) -> None:
    context, store, _ = opened(tmp_path)

    def interrupted() -> None:
        with epochs_shown(context, "a"):
            note_epoch(store, "a", 9, row(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    resumed, _, said = opened(tmp_path)
    with epochs_shown(resumed, "a"):
        assert said.getvalue().startswith(": epoch 5 of 9")


def test_a_study_tells_the_epochs_of_the_model_that_it_trains_and_in_the_end_the_limit_that_it_misses(
    tmp_path: Path,
) -> None:
    settings = copy.deepcopy(small.SMALL)
    settings["sweep"]["methods"], settings["finetune"] = ["random"], {"epochs": 0}
    settings["recommend"] = {"max_macs": 0.01}
    failed, said = small.run(parse_study(settings), tmp_path)
    assert failed == 0
    assert "dense model: epoch 2 of 2, validation accuracy " in said
    _, last = " ".join(said.split()).split(" limit: ")
    assert last.startswith("No trial meets the limit of the study: share of the MACs at most 1 %. The nearest has ")
