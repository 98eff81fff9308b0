"""The measurements that a study makes of each model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.sections import Section
from cleanai_ray.config.target import TargetSection

Backend = Literal["eager", "compile", "onnxruntime"]
Precision = Literal["float32", "bfloat16", "float16"]


class LatencySection(Section):
    """The measurement of latency: dense and pruned interleaved, after a warm-up, as percentiles over runs."""

    batch_sizes: tuple[PositiveInt, ...] = Field((1, 64), min_length=1, description="Batch sizes to time.")
    warmup: PositiveInt = Field(10, description="Untimed runs before the timed ones.")
    runs: Annotated[int, Field(ge=5)] = Field(50, description="Timed runs.")
    threads: PositiveInt = Field(1, description="CPU threads that torch uses while timing.")
    backends: tuple[Backend, ...] = Field(
        ("eager",),
        min_length=1,
        description="What runs the models: torch itself, torch.compile, or onnxruntime (extra: cleanai-ray[onnx]).",
    )
    budget_batch_size: PositiveInt = Field(
        1,
        description="Batch size at which a latency budget is met, in torch; with evaluation.target, "
        "the target's counts instead.",
    )

    @property
    def default_target(self) -> TargetSection:
        """The target of latency budgets where none is named: torch itself, operation by operation."""
        return TargetSection(backend="torch", batch_size=self.budget_batch_size, threads=self.threads)

    @model_validator(mode="after")
    def _check(self) -> LatencySection:
        repeated = next((name for name in self.backends if self.backends.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"evaluation.latency.backends holds {repeated} twice; allowed: each value once")
        return self


class ValidationSection(Section):
    """The images that decide which trial is chosen, if they are of another split than those that are reported on.

    From the training split, they are withheld from training and from calibration. They are drawn with a fixed seed, the
    same number of each class where the data set tells classes without reading images.
    """

    split: str = Field("train", description="Split to draw them from, another one than evaluation.split.")
    samples: PositiveInt | None = Field(
        None,
        description="How many; null: as many as are reported on, and at most a tenth of `train` and of a split that is "
        "calibrated on.",
    )


class EvaluationSection(Section):
    """The samples that models are scored on, in which precision, and how models are timed."""

    split: str = Field("test", description="Split to score, which is never trained on.")
    samples: PositiveInt | None = Field(None, description="Score only this many images of the split; null: all.")
    sampling: Literal["random", "first"] = Field(
        "random",
        description="Which images `samples` takes: a random draw with a fixed seed, where a smaller number is part of "
        "a larger one; or the first of the split, which in a folder sorted by class are a few classes.",
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="Share of these images that decides which trial is chosen, by a fixed seed; the chosen trial "
        "is reported on the others. 0: all images do both, and reports say by how much that flatters.",
    )
    validation: ValidationSection | None = Field(
        None,
        description="Images of another split decide which trial is chosen, so that all images of `split` are reported "
        "on, and none of them decides; null: as validation_share says.",
    )
    precision: Precision = Field(
        "float32",
        description="What convolutions and matrix products of scored models are computed in (autocast): float32, "
        "bfloat16 or float16. Scores are always summed in float64. On CPUs, float16 is slow.",
    )
    latency: LatencySection | None = Field(
        default_factory=lambda: LatencySection(), description="How to measure latency; null: not at all."
    )
    target: TargetSection | None = Field(
        None,
        description="What will run the finished model; it is timed there as often as `latency` says; null: nowhere "
        "but in the back ends of `latency`.",
    )

    @property
    def timed_target(self) -> TargetSection:
        """The target that latency budgets are met in."""
        return self.target or (self.latency or LatencySection()).default_target

    @property
    def deciding_share(self) -> float | None:
        """Share of the scored images of `split` that decide on the chosen trial; None if those of another split do."""
        return self.validation_share if self.validation is None else None

    @model_validator(mode="after")
    def _check_validation(self) -> EvaluationSection:
        usual = EvaluationSection.model_fields["validation_share"].default
        if self.validation is not None and self.validation_share != usual:
            raise ValueError(
                f"evaluation.validation_share is {self.validation_share:g}, and evaluation.validation is given, so "
                "that images of another split decide; allowed: one of the two"
            )
        if self.validation is not None and self.validation.split == self.split:
            raise ValueError(
                f"evaluation.validation.split is '{self.split}', the split that is reported on; allowed: another one, "
                "for instance train"
            )
        return self

    @model_validator(mode="after")
    def _check_target(self) -> EvaluationSection:
        if self.target is not None and self.latency is None:
            raise ValueError(
                f"evaluation.latency is null, but evaluation.target is {self.target.backend}; needed: how often to time"
            )
        return self
