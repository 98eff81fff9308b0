"""A trial: one cell of a study's sweep, or one of its controls."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.controls import Control
from cleanai_ray.config.digests import digest
from cleanai_ray.config.sections import Mode, Ratio, Section, Seed
from cleanai_ray.config.sweep import Budget, Quantization

_UNSAID = {"calibration_samples": None, "calibration_seed": None, "quantization": "none", "control": None}
"""Values that are not told, so that trials keep the names that they had before there was a choice."""


class Trial(Section):
    """One cell of the sweep."""

    method: str
    coverage_metric: str | None = None
    ratio: Ratio | None = None
    budget: Budget | None = None
    mode: Mode = "local"
    steps: PositiveInt = 1
    seed: Seed = 0
    options: dict[str, Any] = Field(default_factory=dict)
    calibration_samples: PositiveInt | None = None
    calibration_seed: Seed | None = None
    quantization: Quantization = "none"
    control: Control | None = None

    @model_validator(mode="after")
    def _check_amount(self) -> Trial:
        if self.ratio is None and self.budget is None:
            raise ValueError("ratio and budget are both null; needed: exactly one of them")
        if self.ratio is not None and self.budget is not None:
            raise ValueError(f"ratio is {self.ratio:g} and budget is {self.budget}; allowed: one of them")
        return self

    @property
    def trains_anew(self) -> bool:
        """True for a control that is trained from random weights."""
        return self.control is not None and self.control.trains_anew

    @property
    def label(self) -> str:
        """The method as tables and charts name it, with its coverage metric; of a control, its name."""
        method = f"{self.method}/{self.coverage_metric}" if self.coverage_metric else self.method
        if self.control is None:
            return method
        return f"{method}, {self.control.label}" if self.control.kind == "scratch" else self.control.label

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that defines the trial; quantisation and calibration draw only if a study sweeps them."""
        return self.model_dump(exclude={name for name, unsaid in _UNSAID.items() if getattr(self, name) == unsaid})

    @property
    def request(self) -> dict[str, Any]:
        """The trial as a plan tells it, as JSON-like values."""
        return self.model_dump(mode="json", exclude={"quantization"} | ({"control"} if self.control is None else set()))

    @property
    def scoring_seed(self) -> int:
        """The seed of random scores; if calibration seeds are swept, every draw has its own."""
        return self.seed if self.calibration_seed is None else int(digest([self.seed, self.calibration_seed])[:8], 16)

    @property
    def trial_id(self) -> str:
        """A readable, stable identifier that ends in a digest of everything that defines the trial."""
        amount = f"r{self.ratio:g}" if self.budget is None else f"{self.budget.resource}{self.budget.limit:g}"
        samples = None if self.calibration_samples is None else f"n{self.calibration_samples}"
        draw = None if self.calibration_seed is None else f"draw{self.calibration_seed}"
        bits = None if self.quantization == "none" else self.quantization
        first = [self.method, self.coverage_metric]
        if self.control is not None:
            first = [self.control.kind, *(first if self.control.kind == "scratch" else ())]
        words = [*first, self.mode, amount, samples, draw, bits, digest(self.identity)[:8]]
        return "-".join(word for word in words if word)
