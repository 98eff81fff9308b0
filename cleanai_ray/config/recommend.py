"""What the recommended trial of a study must satisfy."""

from __future__ import annotations

from pydantic import Field, model_validator

from cleanai_ray.config.sections import Fraction, Section


class RecommendSection(Section):
    """What the recommended trial must satisfy. Of those that do, the one with the least MACs is taken where accuracy is
    limited, the most accurate otherwise.
    """

    max_accuracy_loss: float | None = Field(None, ge=0, le=100, description="Percentage points below the dense model.")
    max_latency_ms: float | None = Field(None, gt=0, description="Median milliseconds of a forward pass, batch 1.")
    min_speedup: float | None = Field(None, gt=0, description="Dense over pruned median latency, batch 1.")
    max_macs: Fraction | None = Field(None, description="MACs, as a fraction of the dense model's.")
    max_params: Fraction | None = Field(None, description="Parameters, likewise.")
    max_size_mb: float | None = Field(None, gt=0, description="Weights file in megabytes of 10^6 bytes.")

    @model_validator(mode="after")
    def _check(self) -> RecommendSection:
        if all(value is None for value in self.model_dump().values()):
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"recommend sets no limit; needed: at least one of {known}, or recommend: null")
        return self
