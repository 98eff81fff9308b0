"""CleanAI-Ray: structured pruning of trained networks, and studies of it on Ray.

stats = cleanai_ray.calibrate(model, batches)
result = cleanai_ray.prune(model, example_inputs, batches, method="wanda", mode="global", ratio=0.3)
cleanai_ray.save(result, "small/")
model = cleanai_ray.load("small/", factory)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleanai_ray.api import (
        PruneResult,
        apply_plan,
        calibrate,
        cheapest_blocks,
        evaluate,
        fine_tune,
        latency_profile,
        load,
        measure_blocks,
        measure_sensitivity,
        prune,
        save,
    )

__version__ = "0.1.0"  # its only home: pyproject.toml reads it here, and no metadata of an installation is needed

__all__ = [
    "PruneResult",
    "apply_plan",
    "calibrate",
    "cheapest_blocks",
    "evaluate",
    "fine_tune",
    "latency_profile",
    "load",
    "measure_blocks",
    "measure_sensitivity",
    "prune",
    "save",
]


def __getattr__(name: str) -> Any:
    """Load the API when it is first asked for: reports must not wait for torch."""
    if name in __all__:
        from cleanai_ray import api

        return getattr(api, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
