"""Risk: a choice by images that the given weights may have been trained on."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.analysis.risks.calibration_in_training import weights_are_given
from cleanai_ray.registry import RISKS


@RISKS.register("choice_on_training_images")
class ChoiceOnTrainingImages(Check):
    """Images of the training split that choose, beside dense weights from elsewhere."""

    position = 165
    looks_for = "a choice by images of the training split"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk where the dense weights were given, so that it is not known what they were trained on."""
        if as_mapping(study.environment.get("samples")).get("selection_split") != "train":
            return
        if weights_are_given(study):
            sentence = (
                "The trial was chosen by images of the training split, and the dense weights were given, so they may "
                "have been trained on them: that is optimistic for the choice, since models look better on these "
                "images than on new ones, and not for what is reported, which is of other images."
            )
            yield Risk("info", "choice by training images", sentence)
