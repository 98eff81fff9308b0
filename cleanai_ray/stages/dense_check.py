"""Whether the dense model is as good as it is said to be, before anything is pruned."""

from __future__ import annotations

from cleanai_ray.analysis.intervals import wilson
from cleanai_ray.config.study import Study
from cleanai_ray.errors import ModelError
from cleanai_ray.models.reported import reported_accuracy
from cleanai_ray.tasks.accuracy import Accuracy

FAR = 0.05
"""Accuracy that a dense model may lack of what is expected, beyond what the choice of its images explains."""


def check_dense(study: Study, score: Accuracy) -> tuple[str, ...]:
    """Compare the score of a dense model with `model.expected_accuracy`, and with what its source states.

    Returns:
        Warnings: a sentence if it scores less than half of what its checkpoint, model card or torchvision states.

    Raises:
        ModelError: When the upper end of the score's 95 % interval (Wilson 1927) is more than `FAR` below what is
            expected.
    """
    expected, section = study.model.expected_accuracy, study.model
    reach = wilson(score.accuracy * score.num_samples, score.num_samples).high
    if expected is not None and reach < expected - FAR:
        raise ModelError(
            f"the dense model scores {score.accuracy:.2%} on {score.num_samples} images, and model.expected_accuracy "
            f"is {expected:g}; nothing was pruned: its images or its classes are not those that it was trained with "
            "(see data.transform, the order of the classes and model.weights_key)"
        )
    stated = reported_accuracy(section)
    if stated is None or score.accuracy >= stated.accuracy / 2:
        return ()
    return (
        f"the dense model scores {score.accuracy:.2%}, less than half of the {stated.accuracy:.2%} that {stated.where} "
        "states; its images or its classes may not be those that it was trained with (model.expected_accuracy ends a "
        "study then)",
    )
