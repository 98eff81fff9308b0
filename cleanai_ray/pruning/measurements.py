"""Measurements of the dense model, which a pruner reads besides its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.importance.base import ImportanceMethod
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.pruning.allocation import Allocate
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.statistics import ActivationStatistics

Remeasure = Callable[[nn.Module], ActivationStatistics]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """Measurements of the dense model, and how to measure a smaller one.

    Attributes:
        statistics: Statistics of the dense model, for methods that read activations or gradients.
        curves: Sensitivity curves of the dense model, for methods that read them.
        remeasure: Calibrates a smaller model, for methods that measure again between steps.
        observe: Where activations are observed: `activation` or `output`.
        allocate: Searches for the allocation of a budget, for methods that ask for it.
        latency: Predicts the time of smaller models, for budgets of latency.
        multiple: The multiple of widths that the target likes, for `round_to: auto`; None: 8.
    """

    statistics: ActivationStatistics | None = None
    curves: SensitivityCurves | None = None
    remeasure: Remeasure | None = None
    observe: str = "activation"
    allocate: Allocate | None = None
    latency: PredictedLatency | None = None
    multiple: int | None = None

    def require(self, method: ImportanceMethod, trial: Trial) -> None:
        """Check that everything is there that a trial's method reads.

        Raises:
            PruningError: When something is missing; the message says what to pass.
        """
        name, statistics = trial.method, self.statistics
        if trial.budget is not None and trial.budget.resource == "latency" and self.latency is None:
            raise PruningError(
                f"budget {trial.budget}: latency takes a profile of the model in its target, and there is none"
            )
        if method.needs_statistics and statistics is None:
            raise PruningError(f"method '{name}' reads calibration data, and none was given; pass batches or stats")
        for kind in ("gradients", "squared_gradients"):
            if getattr(method, f"needs_{kind}") and not getattr(statistics, kind):
                words = kind.replace("_", " ")
                raise PruningError(
                    f"method '{name}' reads {words}, and the statistics hold none; calibrate with {kind}=True"
                )
        if method.remeasures and trial.steps > 1 and self.remeasure is None:
            raise PruningError(f"method '{name}' measures again between steps, which takes batches; pass batches")
        if method.needs_curves and self.curves is None:
            raise PruningError(f"method '{name}' reads sensitivity curves, and none were given; pass batches or curves")
        if method.search:
            require_budget(method, trial)
            if self.allocate is None:
                raise PruningError(
                    f"method '{name}' has search {method.search}, which reads calibration images, and none were given; "
                    "pass batches, or search 0"
                )


def require_budget(method: ImportanceMethod, trial: Trial) -> None:
    """Check that a method that searches for an allocation has a budget to share out, in one step.

    Raises:
        PruningError: When the trial has a ratio, or several steps.
    """
    if method.search and (trial.budget is None or trial.steps > 1):
        found = f"steps {trial.steps}" if trial.budget is not None else f"ratio {trial.ratio:g}"
        raise PruningError(
            f"method '{trial.method}' has search {method.search}, which shares out a budget in one step, and {found} "
            "is asked for; allowed: a budget and steps 1, or search 0"
        )
