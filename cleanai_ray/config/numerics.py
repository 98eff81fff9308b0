"""Numerical settings of the processes that compute a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cleanai_ray.config.sections import Section


class NumericsSection(Section):
    """Precision and repeatability of torch in every process that computes for the study."""

    tf32: bool | None = Field(
        None,
        description="TensorFloat-32 in convolutions and matrix products on GPUs; null: in convolutions alone, as torch "
        "has it.",
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = Field(
        None,
        description="Precision of float32 matrix products, as torch.set_float32_matmul_precision takes it; null: high "
        "if tf32 is true, else highest.",
    )
    deterministic: bool = Field(
        False,
        description="Deterministic algorithms alone, so that the same study gives the same bits on the same hardware; "
        "an operation that has none is an error.",
    )
    cudnn_benchmark: bool | None = Field(
        None, description="Let cuDNN time its algorithms and take the fastest; null: no, as torch has it."
    )

    @model_validator(mode="after")
    def _check(self) -> NumericsSection:
        if self.tf32 is False and self.matmul_precision in ("high", "medium"):
            raise ValueError(
                f"numerics.tf32 is false and numerics.matmul_precision is '{self.matmul_precision}', which uses it; "
                "allowed: numerics.matmul_precision highest, or numerics.tf32 true"
            )
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError(
                "numerics.deterministic and numerics.cudnn_benchmark are both true; allowed: one of them, since the "
                "fastest algorithm may differ from run to run"
            )
        return self

    @property
    def changed(self) -> dict[str, Any]:
        """The keys that differ from their defaults, for digests of what numbers depend on."""
        return self.model_dump(exclude_defaults=True)
