"""The grid of a study: every combination of its values is a trial."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.controls import ControlsSection
from cleanai_ray.config.sections import Fraction, Mode, Ratio, Section
from cleanai_ray.registry import METHODS

Quantization = Literal["none", "int8", "bf16"]


class Budget(Section):
    """The most that the pruned model may cost: a fraction of the dense one, or megabytes. Exactly one key."""

    macs: Fraction | None = Field(None, description="Multiply-accumulates, as a fraction of the dense model's.")
    params: Fraction | None = Field(None, description="Parameters, as a fraction of the dense model's.")
    latency: Fraction | None = Field(
        None, description="Time as a fraction of the dense model's; evaluation.latency says how it is measured."
    )
    size_mb: float | None = Field(
        None, gt=0, description="Size of the weights file in megabytes of 10^6 bytes, not a fraction."
    )

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if len(self.items()) != 1:
            found = " and ".join(self.items()) or "nothing"
            raise ValueError(f"the budget limits {found}; allowed: exactly one of {', '.join(type(self).model_fields)}")
        return self

    def items(self) -> dict[str, float]:
        """Return the resource that is limited and its limit, as a dict of one entry."""
        return {key: value for key, value in self.model_dump().items() if value is not None}

    @property
    def resource(self) -> str:
        """The name of the limited resource."""
        return next(iter(self.items()))

    @property
    def limit(self) -> float:
        """The limit, as a fraction of the dense model, or in megabytes if `is_absolute`."""
        return next(iter(self.items().values()))

    @property
    def is_absolute(self) -> bool:
        """True if the limit is a size in megabytes rather than a fraction."""
        return self.size_mb is not None

    def __str__(self) -> str:
        return f"{self.resource}={str(self.limit).removesuffix('.0')}"  # in full: it tells budgets apart


class SweepSection(Section):
    """The grid: every combination is a trial."""

    methods: tuple[str, ...] = Field(min_length=1, description="Names of `cleanai list methods`.")
    coverage_metrics: tuple[str, ...] = Field(
        ("normalized_mean",),
        description="Names of `cleanai list metrics`; coverage, adaptive and hybrids of them run once for each.",
    )
    ratios: tuple[Ratio, ...] = Field((), description="Shares of channels to remove, in (0, 1).")
    budgets: tuple[Budget, ...] = Field((), description="Budgets instead of ratios, for instance {macs: 0.5}.")
    modes: tuple[Mode, ...] = Field(
        ("local",),
        min_length=1,
        description="Groups ranked together: none (local), all (global) or those of one structure (isomorphic).",
    )
    steps: tuple[PositiveInt, ...] = Field((1,), min_length=1, description="Iterative pruning steps.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="Seeds of each trial.")
    method_seeds: dict[str, Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Seeds of single methods, by name, in place of seeds: more for random, say."
    )
    quantization: tuple[Quantization, ...] = Field(
        ("none",),
        min_length=1,
        description="What follows the last stage: none, int8 (onnxruntime; extra: cleanai-ray[onnx]) or bf16 (torch).",
    )
    method_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of methods, by method name."
    )
    controls: ControlsSection | None = Field(
        None, description="Trials that show whether pruning pays: {kinds: [scratch, narrow, ...]}; null: none."
    )

    @model_validator(mode="after")
    def _check(self) -> SweepSection:
        if not self.ratios and not self.budgets:
            raise ValueError("sweep.ratios and sweep.budgets are both empty; needed: entries in exactly one of them")
        if self.ratios and self.budgets:
            raise ValueError(
                f"sweep.ratios starts with {self.ratios[0]} and sweep.budgets with {self.budgets[0]}; "
                "allowed: entries in one of them"
            )
        for name in ("methods", "coverage_metrics", "ratios", "budgets", "modes", "steps", "seeds", "quantization"):
            values = getattr(self, name)
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                raise ValueError(f"sweep.{name} holds {repeated} twice; allowed: each value once")
        for name, seeds in self.method_seeds.items():
            repeated = next((seed for seed in seeds if seeds.count(seed) > 1), None)
            if repeated is not None:
                raise ValueError(f"sweep.method_seeds.{name} holds {repeated} twice; allowed: each value once")
        return self


def uses_coverage_metric(sweep: SweepSection, name: str) -> bool:
    """Return whether a method, with its options, runs once for each coverage metric.

    Raises:
        ValueError: When an option does not fit the method.
    """
    method, options = METHODS.get(name), sweep.method_options.get(name, {})
    try:
        return bool(method(**options).uses_coverage_metric)
    except TypeError as error:
        known = ", ".join(inspect.signature(method).parameters) or "no options"
        raise ValueError(f"sweep.method_options.{name}: {error}; allowed: {known}") from None
    except ValueError as error:
        raise ValueError(f"sweep.method_options.{name}: {error}") from None
