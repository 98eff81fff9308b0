"""The cost of narrowing each dependency group: removal orders, error curves, and what errors do to the output."""

from cleanai_ray.sensitivity.blocks import BlockError, cheapest_blocks, choose_blocks, measure_blocks
from cleanai_ray.sensitivity.candidates import CandidateScorer, score_candidates, search_images
from cleanai_ray.sensitivity.profile import measure_curves, measure_sensitivity, probe_images
from cleanai_ray.sensitivity.readings import reading_features

__all__ = [
    "BlockError",
    "CandidateScorer",
    "cheapest_blocks",
    "choose_blocks",
    "measure_blocks",
    "measure_curves",
    "measure_sensitivity",
    "probe_images",
    "reading_features",
    "score_candidates",
    "search_images",
]
