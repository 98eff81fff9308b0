"""Everything that speaks against using a study's result."""

from __future__ import annotations

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks import evidence as evidence_risks
from cleanai_ray.analysis.risks import model as model_risks
from cleanai_ray.analysis.risks import study as study_risks
from cleanai_ray.analysis.risks import trial as trial_risks
from cleanai_ray.analysis.risks.base import Risk

CHECKED = (
    "failed trials; accuracy near chance, of the dense model and of every trial; accuracy lost against dense; models "
    "that are no smaller; speed-up below 1, or far below the saving of MACs; collapsed layers; warnings; over-fitting; "
    "methods no better than random; too few evaluated images; how the winner was chosen; overlap of calibration with "
    "training and evaluation; dead channels; missing measurements; samples that could not be read; "
    "classes that lost far more than the mean; winners and accuracies that change with the seed; few calibration "
    "samples"
)
"""What `find_risks` looks at, in words."""


def find_risks(study: StudyFrames) -> tuple[Risk, ...]:
    """Return every risk of a study, the most severe first."""
    checks = (*trial_risks.CHECKS, *model_risks.CHECKS, *study_risks.CHECKS, *evidence_risks.CHECKS)
    found = [risk for check in checks for risk in check(study)]
    order = {"high": 0, "medium": 1, "info": 2}
    return tuple(sorted(found, key=lambda risk: (order[risk.severity], not risk.is_blocking, not risk.is_about_best)))
