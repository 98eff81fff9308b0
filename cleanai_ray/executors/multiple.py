"""The multiple of widths that a study's target likes, measured once for a run directory."""

from __future__ import annotations

import json

from cleanai_ray.config.study import Study
from cleanai_ray.executors.base import Executor
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.stages.multiple import (
    FILE,
    is_measured,
    known_multiple,
    measure_study_multiple,
    multiple_key,
    with_multiple,
)
from cleanai_ray.storage.run_directory import RunDirectory


def obtain_multiple(study: Study, run: RunDirectory, executor: Executor, progress: ProgressReporter) -> Study:
    """Return a study with a number for `pruning.round_to: auto`, if its target must be measured to know it.

    One process measures it, with a whole GPU or all cores of a machine to itself, and the run directory keeps it, so
    that a run that is taken up again has the same widths.
    """
    study = known_multiple(study, run)
    if not is_measured(study):
        return study
    assert study.evaluation.target is not None
    multiple = executor.call("multiple", measure_study_multiple, study.evaluation.target.model_dump_json())
    run.write_bytes(FILE, json.dumps({"multiple": multiple}).encode())
    run.mark(FILE, multiple_key(study))
    progress.say(f"widths are multiples of {multiple}, which {study.evaluation.target.label} likes here")
    return with_multiple(study, multiple)
