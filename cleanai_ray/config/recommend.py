"""The conditions on the recommended trial of a study."""

from __future__ import annotations

from pydantic import Field, model_validator

from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.sections import Fraction, Section


class RecommendSection(Section):
    """The conditions on the recommended trial.

    Of the trials that meet them, the cheapest is recommended if accuracy is among the conditions, and the most accurate
    one otherwise. The cheapest is the fastest in evaluation.target or, without a target, the one with the fewest MACs.
    A trial that is slower than the dense model is never recommended.
    """

    max_accuracy_loss: float | None = Field(
        None, ge=0, le=100, description="Most percentage points below the dense model."
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        description="Most milliseconds of a forward pass, the median in evaluation.target, or else at batch 1.",
    )
    min_speedup: float | None = Field(
        None, gt=0, description="Least ratio of dense to pruned median latency, timed likewise."
    )
    max_macs: Fraction | None = Field(None, description="Most MACs, as a fraction of the dense model's.")
    max_params: Fraction | None = Field(None, description="Most parameters, likewise.")
    max_size_mb: float | None = Field(None, gt=0, description="Largest weights file, in megabytes of 10^6 bytes.")

    @model_validator(mode="after")
    def _check(self) -> RecommendSection:
        if all(value is None for value in self.model_dump().values()):
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"recommend sets no limit; needed: at least one of {known}, or recommend: null")
        return self

    def check_timed(self, evaluation: EvaluationSection) -> None:
        """Refuse a limit on a speed that the study does not measure: that in the target or, without one, at batch 1.

        Raises:
            ValueError: When speed is limited and not timed.
        """
        name = next((name for name in ("max_latency_ms", "min_speedup") if getattr(self, name) is not None), None)
        if name is None or evaluation.target is not None:
            return
        timed = evaluation.latency
        if timed is None or 1 not in timed.batch_sizes or "eager" not in timed.backends:
            raise ValueError(
                f"recommend.{name} is {getattr(self, name):g}, but the study times nothing that it could limit; "
                "needed: evaluation.target, or evaluation.latency with batch size 1 and the back end eager"
            )
