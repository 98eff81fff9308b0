"""The controls of a study: what its pruned models have to beat for pruning to be worth while."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cleanai_ray.config.section import Section

ControlKind = Literal["scratch", "narrow", "dense_finetuned", "torch_pruning"]

_LABELS: dict[ControlKind, str] = {
    "scratch": "from scratch",
    "narrow": "narrow network",
    "dense_finetuned": "dense, fine-tuned",
    "torch_pruning": "torch-pruning",
}


class Control(Section):
    """What a trial is if it is a control."""

    kind: ControlKind = Field(description="The kind of control.")
    compute: Literal["flops", "epochs"] = Field("flops", description="See sweep.controls.compute.")

    @property
    def trains_anew(self) -> bool:
        """True if it is trained from random weights."""
        return self.kind in ("scratch", "narrow")

    @property
    def label(self) -> str:
        """The control as tables and charts name it."""
        return _LABELS[self.kind]


class ControlsSection(Section):
    """Trials that are no pruned model of the study, beside which the pruned ones are read; none is ever recommended."""

    kinds: tuple[ControlKind, ...] = Field(
        min_length=1,
        description="scratch: a pruned architecture trained from random weights; narrow: all layers narrowed alike, "
        "trained likewise; dense_finetuned: the dense model after the trials' fine-tuning; torch_pruning: its own "
        "magnitude pruner, batch norm recalibrated on calibration images, and the trials' fine-tuning.",
    )
    amounts: tuple[float, ...] | None = Field(
        None,
        description="The entries of sweep.ratios, or limits of sweep.budgets, at which scratch and narrow are trained; "
        "null: all.",
    )
    widths_of: str | None = Field(
        None,
        description="For scratch, the method that chooses the widths: METHOD, or METHOD/METRIC with a coverage metric; "
        "null: the first of sweep.methods.",
    )
    mode: Literal["local", "global", "isomorphic"] | None = Field(
        None,
        description="For scratch, the mode in which it chooses them; null: global if that is swept, else the first.",
    )
    compute: Literal["flops", "epochs"] = Field(
        "flops",
        description="Length of the training of scratch and narrow. flops: the MACs that the dense training and the "
        "fine-tuning take, so more epochs of the smaller model (Scratch-B of Liu et al. 2019); epochs: as many epochs "
        "as both together (Scratch-E).",
    )

    @model_validator(mode="after")
    def _check(self) -> ControlsSection:
        for name in ("kinds", "amounts"):
            values = getattr(self, name) or ()
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                raise ValueError(f"sweep.controls.{name} holds {repeated} twice; allowed: each value once")
        return self
