"""The multiple of widths of a study: what its target likes."""

from __future__ import annotations

from cleanai_ray.config.study import Study
from cleanai_ray.config.target import TargetSection
from cleanai_ray.profile.multiple import multiple_in
from cleanai_ray.storage.run_directory import RunDirectory

FILE = "cache/multiple.json"


def is_measured(study: Study) -> bool:
    """Return whether a study takes a measurement to know the multiple of its widths."""
    target = study.evaluation.target
    return study.pruning.round_to == "auto" and target is not None and target.multiple is None


def known_multiple(study: Study, run: RunDirectory) -> Study:
    """Return the study with the multiple that a run directory holds for its target, if it holds one."""
    if not is_measured(study) or not run.is_complete(FILE, multiple_key(study)):
        return study
    return with_multiple(study, int(run.read_json(FILE)["multiple"]))


def multiple_key(study: Study) -> str:
    """Return the target of a study; a run directory belongs to one cluster, so the machine is not in it."""
    return study.evaluation.timed_target.label


def with_multiple(study: Study, multiple: int) -> Study:
    """Return a study whose target names the multiple that it likes."""
    assert study.evaluation.target is not None
    target = study.evaluation.target.model_copy(update={"multiple": multiple})
    return study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"target": target})})


def measure_study_multiple(device: str, target_json: str) -> int:
    """Measure the multiple that a target likes in this process.

    Args:
        device: Where this process computes, for instance `cuda:0`.
        target_json: The target, as `TargetSection.model_dump_json` writes it.
    """
    return multiple_in(TargetSection.model_validate_json(target_json), device)
