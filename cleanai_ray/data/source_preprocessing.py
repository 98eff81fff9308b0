"""The preprocessing of a study: what it says itself, and for the rest what the source of its model says."""

from __future__ import annotations

from typing import Any

from cleanai_ray.config.sections import DataSection, ModelSection, TransformSection
from cleanai_ray.models import class_names, is_from_source, published_transform
from cleanai_ray.nn.notices import inform, notice


def with_published(data: DataSection, model: ModelSection, kind: Any) -> DataSection:
    """Return a data section whose transform is completed by what the model's weights were trained or published with.

    Data sets in memory have no preprocessing but mean and standard deviation. They take those of a model of timm or
    Hugging Face; torchvision's weights leave them their own.

    Args:
        data: The study's `data`.
        model: The study's `model`.
        kind: The class of the data set, an `ImageSource`.
    """
    whole = "resize" in kind.transform_names
    published = published_transform(model) if whole or is_from_source(model) else None
    if published is None:
        return data
    if whole:
        transform = _completed(data.transform, published, model.input_shape)
    else:
        transform = _normalised(data, published, kind)
    return data.model_copy(update={"transform": transform})


def _normalised(data: DataSection, published: TransformSection, kind: Any) -> TransformSection:
    """Return the preprocessing of a data set in memory, with the source's mean and deviation for its channels."""
    own, found = data.transform or TransformSection(), {}
    for name in ("mean", "std"):
        values, channels = getattr(published, name), len(getattr(kind.pixels, name))
        if name not in kind.transform_names or getattr(own, name) is not None or values is None:
            continue
        if channels == 1 and len(set(values)) == 1:
            values = values[:1]  # the one channel is repeated
        if len(values) == channels:
            found[name] = values
        else:
            notice(
                f"data set '{data.name}' has {channels} channel and the model's source a {name} for {len(values)}; the "
                f"data set's own is taken (data.transform.{name} sets another)"
            )
    return own.model_copy(update=found)


def _completed(
    own: TransformSection | None, published: TransformSection, input_shape: tuple[int, ...]
) -> TransformSection:
    """Return a study's preprocessing with what it leaves open; the crop is the input, and resizing in proportion."""
    assert published.resize is not None
    assert published.crop is not None
    height, width = input_shape[-2:]
    resize: int | tuple[int, int]
    if isinstance(published.resize, int):
        resize = round(published.resize * max(height, width) / published.crop)
    else:
        resize = (
            round(published.resize[0] * height / published.crop),
            round(published.resize[1] * width / published.crop),
        )
    usual = {**published.model_dump(), "resize": resize, "crop": None}
    return TransformSection(**{**usual, **({} if own is None else own.model_dump(include=set(own.given)))})


def order_of_classes(model: ModelSection, found: tuple[str, ...], name: str) -> tuple[str, ...] | None:
    """Return the class names of a data set in the order of the model's, where only the order differs.

    Args:
        model: The study's `model`.
        found: The class names of the data set, in its order.
        name: Name of the data set, for the message.

    Returns:
        None if the order is the same, or the names are others, as they are for a model without names.
    """
    names = class_names(model)
    wanted = {_plain(label): number for number, label in enumerate(names)}
    if len(wanted) != len(found):
        return None
    if {_plain(label) for label in found} != set(wanted):
        number = next(place for place, label in enumerate(found) if _plain(label) not in wanted)
        notice(
            f"class {number} is '{found[number]}' in data set '{name}' and '{names[number]}' in {model.name}: names do "
            "not tell whether classes are numbered alike, so look at the dense accuracy"
        )
        return None
    ordered = tuple(sorted(found, key=lambda label: wanted[_plain(label)]))
    if ordered == found:
        return None
    inform(f"the classes of data set '{name}' are numbered as those of {model.name}: 0 is '{ordered[0]}'")
    return ordered


def _plain(label: str) -> str:
    return label.casefold().replace("_", " ").replace("-", " ").strip()
