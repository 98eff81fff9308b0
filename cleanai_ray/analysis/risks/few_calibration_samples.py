"""Risk: few calibration samples."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS

FEW_CALIBRATION_SAMPLES, FEW_A_CLASS = 128, 5
"""Calibration images below which statistics are taken to be unreliable: in all, and a class."""


@RISKS.register("few_calibration_samples")
class FewCalibrationSamples(Check):
    """Calibration images that are too few for reliable statistics."""

    position = 260
    looks_for = "few calibration samples"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk where they are few in all, or few a class."""
        samples = study.results["calibration_samples"].min()
        if samples is None:
            samples = as_mapping(study.environment.get("samples")).get("calibration")
        if samples is None:
            samples = as_mapping(as_mapping(study.study.get("data")).get("calibration")).get("samples")
        if not isinstance(samples, int):
            return
        if samples < FEW_CALIBRATION_SAMPLES:
            where = " in some trials" if study.results["calibration_samples"].n_unique() > 1 else ""
            sentence = (
                f"Only {plural(samples, 'calibration image')}{where}: activation statistics and repair rest on very "
                f"little; this check wants at least {FEW_CALIBRATION_SAMPLES}."
            )
            yield Risk("medium", "few calibration samples", sentence)
        elif study.chance is not None and samples * study.chance < FEW_A_CLASS:
            sentence = (
                f"{samples} calibration images are fewer than {FEW_A_CLASS} a class ({round(1 / study.chance)} "
                "classes): rare activations may be missed."
            )
            yield Risk("info", "few calibration samples", sentence)
