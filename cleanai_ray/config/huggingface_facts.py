"""What a model of transformers says of itself: its configuration, and its image processor's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.source_facts import SourceFacts, said_in_a_line
from cleanai_ray.errors import ModelError

HUB_OPTIONS = ("cache_dir", "revision", "subfolder", "token", "local_files_only")
"""Options that say where files are; all others change the configuration."""
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
_WEIGHTS_FILES = ("model*.safetensors", "pytorch_model*.bin")
"""What transformers loads, in one piece or in several."""
_WHOLE_FROM = 384
"""ConvNeXT's processor cuts nothing off images of at least this size."""


def hub_name(name: ModelName) -> str:
    """Return the name by which transformers knows a model: a folder, or a repository."""
    return name.name if name.folder is None else str(name.folder)


def read_config(name: ModelName, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a model, changed by options.

    Raises:
        ModelError: When it cannot be reached, or does not know an option.
    """
    from transformers import AutoConfig

    try:
        config, unused = AutoConfig.from_pretrained(hub_name(name), return_unused_kwargs=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.name is '{name}', whose configuration cannot be read: {said_in_a_line(error)}; allowed without "
            "internet access: a folder in transformers' format, or a cache that holds it (HF_HOME, or cache_dir in "
            "model.options)"
        ) from error
    unknown = sorted(set(unused) - set(HUB_OPTIONS))
    if unknown:
        raise ModelError(f"model.options holds '{unknown[0]}', which is not in the configuration of {name}")
    return config


def read_facts(name: ModelName, options: Mapping[str, Any]) -> SourceFacts:
    """Return what a model of transformers says of itself.

    Raises:
        ModelError: When its files cannot be reached, or its images are prepared in a way that this system has not got.
    """
    config, processor = read_config(name, options), _processor(name, options)
    channels = int(getattr(config, "num_channels", 3))
    names = getattr(config, "id2label", None) or {}
    notes: tuple[str, ...]
    if processor is None:
        side = _image_size(config)
        notes = (
            f"{name} has no preprocessor_config.json; its images are prepared as usual, or as data.transform says",
        )
        transform, sides = TransformSection(crop=max(side), resize=round(max(side) * 256 / 224)), side
    else:
        transform, sides, notes = _transform(name, processor, _image_size(config))
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    return SourceFacts(
        num_classes=int(config.num_labels),
        input_shape=(channels, *sides),
        transform=transform,
        has_weights=_has_weights(name, options),
        class_names=() if all(label == f"LABEL_{number}" for number, label in enumerate(labels)) else labels,
        notes=notes,
    )


def _has_weights(name: ModelName, options: Mapping[str, Any]) -> bool:
    """Return whether a folder holds weights; of a repository on the hub it is taken for granted."""
    if name.folder is None:
        return True
    folder = name.folder / str(options.get("subfolder", ""))
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS_FILES)


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or 224
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _processor(name: ModelName, options: Mapping[str, Any]) -> Any:
    """Return the image processor of a model; None if it has none."""
    from transformers import AutoImageProcessor

    where = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        return AutoImageProcessor.from_pretrained(hub_name(name), **where)
    except (OSError, ValueError) as error:
        if name.folder is not None and not (name.folder / "preprocessor_config.json").is_file():
            return None
        raise ModelError(
            f"model.name is '{name}', whose image processor cannot be read: {said_in_a_line(error)}"
        ) from error


def _transform(
    name: ModelName, processor: Any, image_size: tuple[int, int]
) -> tuple[TransformSection, tuple[int, int], tuple[str, ...]]:
    """Return the preprocessing of an image processor, height and width of what it gives, and notes."""
    if _asks(processor, "do_flip_channel_order"):
        raise ModelError(
            f"model.name is '{name}', whose images have their channels in the order blue, green, red; allowed: models "
            "of RGB images, or a model.factory that turns the channels round"
        )
    notes: list[str] = []
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    sides = _sides(crop) if _asks(processor, "do_center_crop") and crop else None
    resize: int | tuple[int, int] | None = None
    if _asks(processor, "do_resize", True):
        resize, inputs = _resize(processor, size)
        sides = sides or inputs
    sides = sides or image_size
    number = int(getattr(processor, "resample", None) or 0)
    interpolation = _INTERPOLATIONS.get(number, "bicubic")
    if number not in _INTERPOLATIONS:
        notes.append(f"the image processor of {name} resizes with PIL's method {number}; here it is bicubic")
    mean, std = _normalisation(processor)
    side = max(sides)
    transform = TransformSection(
        resize=resize or side, crop=side, interpolation=interpolation, mean=tuple(mean), std=tuple(std)
    )
    return transform, sides, tuple(notes)


def _asks(processor: Any, name: str, default: bool = False) -> bool:
    found = getattr(processor, name, None)
    return default if found is None else bool(found)


def _sides(size: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return (int(height), int(width)) if height and width else None


def _resize(processor: Any, size: Mapping[str, Any]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """Return what images are resized to, and height and width of the inputs if nothing is cut off afterwards."""
    exact, shortest, kind = _sides(size), size.get("shortest_edge"), type(processor).__name__
    if exact is not None:
        return exact, exact
    if not shortest:
        return None, None
    shortest = int(shortest)
    square = shortest, shortest
    if kind.startswith("ConvNext"):  # its resizing cuts, too
        return (square if shortest >= _WHOLE_FROM else int(shortest / processor.crop_pct)), square
    if kind.startswith("PoolFormer") and getattr(processor, "crop_pct", None):
        return int(shortest / processor.crop_pct), square
    if kind.startswith("Levit"):
        return int(256 / 224 * shortest), square
    return shortest, square


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation that make of values 0 to 1 what the processor makes of bytes.

    A processor computes (value * rescale_factor - offset - mean) / std, for EfficientNet's classifiers divided by std
    once more.
    """
    mean, std = [0.0], [1.0]
    if _asks(processor, "do_normalize"):
        mean, std = list(processor.image_mean), list(processor.image_std)
    mean, std = (values * 3 if len(values) == 1 else values for values in (mean, std))
    factor = (
        float(getattr(processor, "rescale_factor", None) or 1 / 255) if _asks(processor, "do_rescale", True) else 1.0
    )
    offset = 1.0 if _asks(processor, "rescale_offset") else 0.0
    scale = 255 * factor
    twice = type(processor).__name__.startswith("EfficientNet") and _asks(processor, "include_top")
    shift = [(value + offset) / scale for value in mean]
    return shift, [value * (value if twice else 1) / scale for value in std]
