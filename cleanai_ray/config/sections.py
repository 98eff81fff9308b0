"""The sections of a study file, typed: what each key means, its default and its bounds."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from cleanai_ray.config.blocks import RemovedBlocks
from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.images import CacheSection, TransformSection
from cleanai_ray.config.model import ModelSection as ModelSection
from cleanai_ray.config.model import TrainSection as TrainSection
from cleanai_ray.config.section import Section

Ratio = Annotated[float, Field(gt=0.0, lt=1.0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0)]
Mode = Literal["local", "global", "isomorphic"]
Multiple = Literal["auto"] | PositiveInt
USUAL_MULTIPLE = 8
"""Widths that suit the vector units of CPUs, where no target was measured."""
LEAST_STEPS = 4
"""Steps of an automatic multiple that every group has at least, as far as it has the channels."""
_INT8_MULTIPLE = 16

HELD_BACK = 5
"""Repair and fine-tuning hold back one calibration image in this many, to judge by."""


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


class CalibrationSection(Section):
    """The samples that activation statistics come from, and what is observed."""

    samples: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        1024, description="Number of calibration images; a list makes it part of the sweep."
    )
    split: str = Field("train", description="Split that calibration images are drawn from.")
    seed: Seed | Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        0, description="Seed of the draw; a list makes it part of the sweep."
    )
    disjoint: bool = Field(False, description="No image is in the draws of two seeds; a seed is the draw's number.")
    shard_size: PositiveInt = Field(256, description="Images per shard, the unit of work, of retry and of resumption.")
    second_moment_samples: PositiveInt = Field(
        2048, description="At most this many calibration images give second moments; every fifth of them is left out."
    )
    positions_per_sample: PositiveInt = Field(64, description="Pixels or tokens per image that second moments read.")
    observe: Literal["activation", "output"] = Field(
        "activation", description="What the next layer receives, or the raw output of each Conv2d and Linear."
    )
    threshold: float = Field(
        0.0, description="For `frequency`, a channel is active on a sample if its mean activation is above this."
    )
    top_k: PositiveInt = Field(
        10, description="For `top_k`, how many channels of a layer count as a sample's strongest."
    )
    sections: Annotated[int, Field(ge=2)] = Field(
        64,
        description="Bins of a layer's range for `k_multisection` and `entropy`; 64 bins of 1024 samples hold 16 each.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the forward pass; sums are in float32 or better in either case."
    )
    withhold_from_training: Literal["auto"] | bool = Field(
        "auto",
        description="Keep calibration images out of training; auto: if they are at most a fifth of the split.",
    )
    allow_overlap: bool = Field(False, description="Allow calibration on the split that evaluation scores.")

    @field_validator("samples", "seed", mode="after")
    @classmethod
    def _check_list(cls, value: int | tuple[int, ...], info: ValidationInfo) -> int | tuple[int, ...]:
        if isinstance(value, int):
            return value
        repeated = next((entry for entry in value if value.count(entry) > 1), None)
        if repeated is not None:
            raise ValueError(f"data.calibration.{info.field_name} holds {repeated} twice; allowed: each value once")
        return value[0] if len(value) == 1 else value

    def draws(self) -> tuple[CalibrationDraw, ...]:
        """Return every draw that the study asks for, in the order of the file; most studies ask for one."""
        every = itertools.product(_as_tuple(self.samples), _as_tuple(self.seed))
        return tuple(CalibrationDraw(samples, seed) for samples, seed in every)


class DataSection(Section):
    """The data set and its samples."""

    name: str = Field(description="A name of `cleanai list datasets`.")
    path: str | None = Field(
        None, min_length=1, description="For huggingface: a name on the hub, or a folder on this machine."
    )
    root: str | None = Field(None, description="Folder or URL of the data set; null: where it usually is.")
    batch_size: PositiveInt = Field(128, description="Images per batch in calibration, training and evaluation.")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="Processes per trial or actor that decode images; auto: as many as its CPU cores can feed.",
    )
    decoder: Literal["auto", "cpu"] = Field(
        "auto",
        description="Decoder of JPEGs that are kept; auto: on CUDA devices nvJPEG, where its images are the CPU's but "
        "for rounding; elsewhere, and with cpu, Pillow.",
    )
    skip_unreadable: int = Field(
        0,
        ge=0,
        description="Images that a process may skip because they cannot be decoded; 0: the first is an error.",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the training split held out for early stopping."
    )
    calibration: CalibrationSection = Field(default_factory=lambda: CalibrationSection())
    transform: TransformSection | None = Field(None, description="Preprocessing; null: the model's.")
    cache: CacheSection | None = Field(
        default_factory=lambda: CacheSection(), description="Keeps decoded images on each node; null: none are kept."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the data set.")


class PruningSection(Section):
    """Bounds on what any method may remove."""

    layer_ratios: dict[str, Ratio] = Field(
        default_factory=dict,
        description="Channel ratio by module-name prefix, for the layers whose names start with it.",
    )
    ignored_layers: tuple[str, ...] = Field(
        (), description="Module names, or patterns of them (*.attn), that keep their width, with all below them."
    )
    max_ratio: Ratio = Field(0.9, description="No group of layers loses more than this share of its channels.")
    round_to: Multiple | None = Field(
        "auto",
        description="Widths of pruned layers are multiples of this; auto: what evaluation.target likes, measured once, "
        "else 8, or 16 for int8; half or a quarter of that where a layer would have fewer than 4 steps; null: any.",
    )
    min_channels: PositiveInt = Field(1, description="No group of layers keeps fewer channels than this.")
    equal_widths: tuple[str, ...] = Field(
        (),
        description="Patterns of names of groups of layers (*.mlp.*); all groups that one matches keep the same number "
        "of channels.",
    )
    check: bool = Field(
        True,
        description="Compare each cut, on an example input, with the model whose removed channels are silent; a group "
        "of layers that could only be cut wrongly keeps its width.",
    )
    remove_blocks: RemovedBlocks | None = Field(
        None,
        description="Residual blocks to replace by their shortcuts before layers are narrowed: {names: [...]}, "
        "{macs: SHARE} or {count: N}; auto: for each budget, those that cost less than narrowing; null: none.",
    )

    def described(self) -> dict[str, Any]:
        """Return the bounds as JSON-like values, without what came later where it is the default."""
        later = {
            "remove_blocks": self.remove_blocks is None,
            "check": self.check,
            "equal_widths": not self.equal_widths,
        }
        return self.model_dump(mode="json", exclude={name for name, is_default in later.items() if is_default})

    def resolved(self, quantization: str = "none", multiple: int | None = None) -> PruningSection:
        """Return the bounds with a number in place of `auto`.

        Args:
            quantization: How the model will be quantised; int8 takes multiples of at least 16.
            multiple: The multiple that the target likes; None: 8.
        """
        if self.round_to != "auto":
            return self
        least = _INT8_MULTIPLE if quantization == "int8" else 1
        return self.model_copy(update={"round_to": max(multiple or USUAL_MULTIPLE, least)})


class RepairSection(Section):
    """Recovery after surgery without labels, from calibration images."""

    compensation: Literal["none", "closed_form", "sequential", "unfolded", "blockwise", "auto"] = Field(
        "auto",
        description="Refit of layers that read a narrowed input; blockwise also trains each block; auto: the "
        "one that a fifth of the images judges best.",
    )
    batch_norm: Literal["none", "relative", "reset", "auto"] = Field(
        "auto", description="Recalibration of running statistics; auto: relative or none, judged likewise."
    )
    ridge: float | None = Field(
        None,
        gt=0,
        description="Regularisation of the refit, as a share of the mean variance; null: 0.001; unfolded and "
        "blockwise choose one for each layer, and auto tries several of closed_form.",
    )
    block_steps: PositiveInt = Field(600, description="Training steps of each block, for blockwise.")
    distill_steps: int = Field(
        0,
        ge=0,
        description="Steps of distillation from the dense model after everything else; with it, auto tries "
        "blockwise as well.",
    )
    seconds: float | None = Field(
        None, gt=0, description="Most seconds of training by blockwise and distill_steps; null: no limit."
    )
    samples: PositiveInt = Field(
        1024, description="At most this many calibration images are read by everything but closed_form by name."
    )

    @property
    def is_on(self) -> bool:
        """True if anything is repaired."""
        return (self.compensation, self.batch_norm) != ("none", "none") or self.distill_steps > 0

    @property
    def holds_back(self) -> bool:
        """True if every fifth calibration image judges what the others have repaired."""
        return (
            "auto" in (self.compensation, self.batch_norm) or self.compensation == "blockwise" or self.distill_steps > 0
        )


class ResourcesSection(Section):
    """Resources of the cluster that one piece of work takes."""

    calibration_actors: Literal["auto"] | PositiveInt = Field(
        "auto", description="Actors that calibrate; auto: one per GPU, or one per core."
    )
    cpus_per_trial: Annotated[float, Field(gt=0)] = Field(1, description="CPU cores per trial.")
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="GPUs per trial; with a fraction, trials share one; auto: a whole one for inputs of ImageNet's "
        "size, and for smaller ones the share whose memory suffices; 0: the study uses no GPU at all.",
    )
    max_concurrent_trials: Literal["auto"] | PositiveInt = Field(
        "auto", description="Trials at once; auto: as many as the cluster holds."
    )

    @property
    def uses_gpus(self) -> bool:
        """False if the study is to leave GPUs alone."""
        return self.gpus_per_trial != 0

    @property
    def gpus(self) -> float:
        """GPUs per trial, once they are a number; 0 as long as they are `auto`, so that nothing is asked for."""
        return 0.0 if self.gpus_per_trial == "auto" else self.gpus_per_trial


class OutputSection(Section):
    """The place of the results."""

    dir: str = Field(
        "artifacts/study",
        min_length=1,
        description="Run directory: a folder or a pyarrow filesystem URL; by default artifacts/NAME.",
    )
    save_models: Literal["none", "best", "front", "all"] = Field(
        "front", description="Models to keep; best: the chosen trial's; front: also all unbeaten in accuracy and MACs."
    )
