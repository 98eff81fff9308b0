"""The sections of a study file on images: their preprocessing, and where decoded ones are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from cleanai_ray.config.section import Section


class TransformSection(Section):
    """Preprocessing of images; what is null is what the model's source or pretrained weights say, or else usual."""

    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Pixels of the shorter side after resizing, usually 256/224 of the model's input; two are height "
        "and width, whatever the image's proportions.",
    )
    crop: PositiveInt | None = Field(
        None, description="Pixels of the sides of the centre that is cut out: those of model.input_shape."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = Field(
        None, description="Interpolation of resizing; usually bilinear."
    )
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = Field(
        None, description="Subtracted from values 0 to 1, one a channel; usually ImageNet's."
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = Field(
        None, description="Divided by after that, one a channel; usually ImageNet's."
    )
    train_area: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Least share of the image's area that the random part has which is taken in training, usually "
        "0.08; 1: no random part, but the same resizing and centre as elsewhere.",
    )
    train_mirror: bool | None = Field(None, description="Mirror half of the images in training, usually true.")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the keys that are not null."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class CacheSection(Section):
    """Decoded images of calibration and evaluation, which a node keeps, so that each is decoded once."""

    folder: str | None = Field(
        None,
        description="Folder on each node; null: `$CLEANAI_CACHE/decoded`, or one in the system's temporary folder.",
    )
    max_bytes: PositiveInt = Field(
        2**34, description="Size of the folder; the least recently used files make room for others."
    )

    @field_validator("folder", mode="after")
    @classmethod
    def _check_folder(cls, folder: str | None) -> str | None:
        if folder is not None and ("://" in folder or not folder.startswith(("/", "~"))):
            raise ValueError(f"data.cache.folder is '{folder}'; allowed: an absolute path on each node, or null")
        return folder
