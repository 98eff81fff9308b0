"""Opening a study's data set."""

from __future__ import annotations

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data.source import ImageSource
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS


def open_source(data: DataSection, model: ModelSection) -> ImageSource:
    """Open a data set for a model's inputs and classes.

    Args:
        data: The study's `data`.
        model: The study's `model`: `input_shape` and `num_classes`.

    Raises:
        RegistryError: When no data set has this name.
        DataError: When it is missing or malformed, or does not fit the model.
    """
    kind: type[ImageSource] = DATASETS.get(data.name)
    if model.input_shape[0] not in kind.channels:
        raise DataError(
            f"model.input_shape is {list(model.input_shape)}; allowed channels with data set '{data.name}': "
            f"{', '.join(map(str, kind.channels))}"
        )
    source = kind(data, model.input_shape)
    if source.num_classes != model.num_classes:
        raise DataError(
            f"model.num_classes is {model.num_classes}; allowed with data set '{data.name}'"
            f"{f' at {data.root}' if data.root else ''}: {source.num_classes}, the number of its classes"
        )
    return source
