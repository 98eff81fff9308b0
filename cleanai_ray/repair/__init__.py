"""Repair of a pruned model without labels: weights, batch-norm statistics, and training on the dense model."""

from cleanai_ray.repair.auto import auto_repair
from cleanai_ray.repair.batch_norm import recalibrate
from cleanai_ray.repair.compensation import compensate_closed_form
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.options import COMPENSATIONS, RIDGES, RepairOptions
from cleanai_ray.repair.outcome import RepairOutcome, repair
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sequential import compensate_sequential
from cleanai_ray.repair.unfolded import compensate_unfolded

__all__ = [
    "COMPENSATIONS",
    "RIDGES",
    "ConsumerMoments",
    "ModelPair",
    "RepairOptions",
    "RepairOutcome",
    "auto_repair",
    "collect_moments",
    "compensate_closed_form",
    "compensate_sequential",
    "compensate_unfolded",
    "recalibrate",
    "repair",
]
