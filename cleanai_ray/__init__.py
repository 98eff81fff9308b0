"""CleanAI-Ray: structured pruning of trained networks, and studies of it on Ray.

stats = cleanai_ray.calibrate(model, batches)
result = cleanai_ray.prune(model, example_inputs, batches, method="wanda", mode="global", ratio=0.3)
cleanai_ray.save(result, "small/")
model = cleanai_ray.load("small/", factory)

run = cleanai_ray.run("study.yaml")
print(cleanai_ray.analyse(run).summary())
"""

from __future__ import annotations

from importlib import import_module
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
    from cleanai_ray.executors.library import run
    from cleanai_ray.stages.study_run import analyse, load_run

__version__ = "0.1.0"  # its only home: pyproject.toml reads it here, and no metadata of an installation is needed

__all__ = [
    "PruneResult",
    "analyse",
    "apply_plan",
    "calibrate",
    "cheapest_blocks",
    "evaluate",
    "fine_tune",
    "latency_profile",
    "load",
    "load_run",
    "measure_blocks",
    "measure_sensitivity",
    "prune",
    "run",
    "save",
]

_HOMES = {
    "analyse": "cleanai_ray.stages.study_run",
    "load_run": "cleanai_ray.stages.study_run",
    "run": "cleanai_ray.executors.library",
}
"""The modules of names that are not in `cleanai_ray.api`: what only reads tables must not wait for torch."""


def __getattr__(name: str) -> Any:
    """Load a name of the API when it is first asked for: reports must not wait for torch."""
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "cleanai_ray.api")), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the names of the API, so that editors and notebooks complete them."""
    return sorted([*__all__, "__version__"])
