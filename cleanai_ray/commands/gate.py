"""The command `gate`, for continuous integration."""

from __future__ import annotations

from typing import Annotated

import typer

from cleanai_ray.commands.common import DirectoryArgument, TrialOption
from cleanai_ray.errors import StudyError


def gate(
    directory: DirectoryArgument,
    max_loss: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Most percentage points of accuracy (mIoU, mAP) below the dense model; of perplexity or RMSE, the "
            "most that it may rise, in its own unit.",
        ),
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(min=0, help="Least ratio of dense to pruned latency, in the target or at batch 1.")
    ] = None,
    trial: TrialOption = "recommended",
) -> int:
    """Say in one sentence whether a trial keeps to limits; exit code 1 if not.

    A limit is kept to if the whole 95 % interval is within it: that of the accuracy lost, and that of the speed-up. The
    scores of other tasks than classification have no interval, and are within it themselves.
    """
    if max_loss is None and min_speedup is None:
        raise StudyError("gate: no limit is given; needed: --max-loss, --min-speedup or both")
    from cleanai_ray.analysis.frames import StudyFrames
    from cleanai_ray.analysis.gate import judge_gate
    from cleanai_ray.analysis.plugins import load_plugins_of
    from cleanai_ray.storage.run_directory import RunDirectory
    from cleanai_ray.storage.status import STATUS_FILE, read_status

    run = RunDirectory(directory)
    state = read_status(run).state if run.exists(STATUS_FILE) else "finished"
    if state != "finished":
        print(f"Gate not passed: the last run in {run.location} is {state}, so its tables may be of an earlier one.")
        return 1
    study = StudyFrames.load(run)
    load_plugins_of(study)
    found = judge_gate(study, max_loss=max_loss, min_speedup=min_speedup, trial=trial)
    print(found.sentence)
    return 0 if found.passed else 1
