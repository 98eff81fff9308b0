"""The conditions on the recommended trial of a study."""

from __future__ import annotations

from pydantic import Field, model_validator

from cleanai_ray.config.sections import Fraction, Section


class RecommendSection(Section):
    """The conditions on the recommended trial.

    Of the trials that meet them, the one with the fewest MACs is recommended if accuracy is among the conditions, and
    the most accurate one otherwise.
    """

    max_accuracy_loss: float | None = Field(
        None, ge=0, le=100, description="Most percentage points below the dense model."
    )
    max_latency_ms: float | None = Field(
        None, gt=0, description="Most milliseconds of a forward pass, the median at batch 1."
    )
    min_speedup: float | None = Field(None, gt=0, description="Least ratio of dense to pruned median latency, batch 1.")
    max_macs: Fraction | None = Field(None, description="Most MACs, as a fraction of the dense model's.")
    max_params: Fraction | None = Field(None, description="Most parameters, likewise.")
    max_size_mb: float | None = Field(None, gt=0, description="Largest weights file, in megabytes of 10^6 bytes.")

    @model_validator(mode="after")
    def _check(self) -> RecommendSection:
        if all(value is None for value in self.model_dump().values()):
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"recommend sets no limit; needed: at least one of {known}, or recommend: null")
        return self
