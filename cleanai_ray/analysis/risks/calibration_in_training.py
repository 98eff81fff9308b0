"""Risk: calibration images that were trained on."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


def weights_are_given(study: StudyFrames) -> bool:
    """Return whether the dense weights came with the study file, so that what they were trained on is not known."""
    return as_mapping(study.study.get("model")).get("weights") is not None


@RISKS.register("calibration_in_training")
class CalibrationInTraining(Check):
    """Calibration images that the dense model was trained on."""

    position = 170
    looks_for = "overlap of calibration with training"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk."""
        samples = as_mapping(study.environment.get("samples"))
        if weights_are_given(study) and samples.get("calibration_withheld_from_training"):
            sentence = (
                "The dense weights were given, so it is not known if they were trained on the calibration images; "
                "activations on those may look better than on new ones."
            )
            yield Risk("info", "calibration shared with training", sentence)
        if samples.get("calibration_withheld_from_training") is False:
            sentence = (
                "Calibration images were also used for training; activations on them may look better than on new ones."
            )
            yield Risk("info", "calibration shared with training", sentence)
