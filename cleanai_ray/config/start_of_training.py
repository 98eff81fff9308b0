"""Which images may judge the weights that fine-tuning begins with."""

from __future__ import annotations

from cleanai_ray.config.study import Study


def weights_are_foreign(study: Study) -> bool:
    """Return whether the dense weights are from elsewhere: they were most likely trained on the validation images."""
    return study.model.train is None or study.model.weights is not None


def start_judged_by_deciding_images(study: Study) -> bool:
    """Return whether the images that decide on the chosen trial also decide between the start and the best epoch.

    They do where the dense weights are from elsewhere, fine-tuning learns from training images, and the images that
    decide are not those that are reported on (`validation_share: 0`), nor of the training split.
    """
    if study.finetune.data != "training" or not study.fine_tunes or not weights_are_foreign(study):
        return False
    section = study.evaluation.validation
    return study.evaluation.validation_share > 0 if section is None else section.split != "train"
