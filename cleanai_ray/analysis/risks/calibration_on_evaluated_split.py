"""Risk: calibration on the images that are scored."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("calibration_on_evaluated_split")
class CalibrationOnEvaluatedSplit(Check):
    """Calibration on the split that models are scored on."""

    position = 180
    looks_for = "overlap of calibration with evaluation"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk."""
        calibration = as_mapping(as_mapping(study.study.get("data")).get("calibration")).get("split")
        evaluation = as_mapping(study.study.get("evaluation")).get("split")
        if calibration is not None and calibration == evaluation:
            sentence = (
                f"Calibration and evaluation both use the split '{evaluation}': accuracies are not on unseen images."
            )
            yield Risk("high", "calibration on the evaluated split", sentence, is_about_best=True)
