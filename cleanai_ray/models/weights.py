"""Loading the weights of a model: from a file, or torchvision's."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError, ModelError
from cleanai_ray.models.family import ModelFamily, find_classifier, fit_positions, one_line
from cleanai_ray.storage.run_directory import resolve_filesystem

_NUM_SHOWN = 3


def _read(path: str) -> tuple[bytes, bool]:
    """Return a file's content, and whether its name (without a URL's query) has the suffix of safetensors."""
    try:
        filesystem, location = resolve_filesystem(path)
        with filesystem.open_input_file(location) as stream:
            return stream.read(), location.endswith(".safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"model.weights '{path}' does not exist; allowed: a .safetensors or state_dict file, 'pretrained', or null"
        ) from error
    except (ArtifactError, OSError) as error:
        raise ModelError(f"model.weights '{path}' cannot be read: {one_line(error)}") from error


def _parse(path: str) -> Any:
    content, is_safetensors = _read(path)
    try:
        if is_safetensors:
            return safetensors.torch.load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        reason = one_line(error).partition(". ")[0][:200]
        raise ModelError(
            f"model.weights '{path}' is not a readable {'safetensors' if is_safetensors else 'PyTorch'} "
            f"file of tensors ({type(error).__name__}: {reason})"
        ) from error


def _state_of(path: str, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"model.weights '{path}' holds {type(content).__name__}; allowed: a mapping of tensors by name"
        )
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise ModelError(
            f"model.weights '{path}' holds {type(content[odd]).__name__} under '{odd}'; "
            "allowed: tensors by name, or those under 'state_dict' or 'model'"
        )
    prefix = "module."
    if all(key.startswith(prefix) for key in content):
        return {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape)).replace(" ", "")


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    expected = model.state_dict()
    found = []
    for name, tensor in expected.items():
        if name not in state:
            if not name.endswith("num_batches_tracked"):
                found.append(f"{name} is missing (expected {_shape(tensor)})")
        elif state[name].shape != tensor.shape:
            found.append(f"{name} is {_shape(state[name])} (expected {_shape(tensor)})")
    return found + [f"{name} is not in the model" for name in state if name not in expected]


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a model of the very same names and shapes.

    `num_batches_tracked` may be absent, as in files from before PyTorch 0.4.1.

    Args:
        model: Changed in place.
        state: Tensors by name.
        source: Name of the tensors' origin in error messages.

    Raises:
        ModelError: When names or shapes differ; the message shows the first that do.
    """
    misfits = _misfits(model, state)
    if misfits:
        more = f"; and {len(misfits) - _NUM_SHOWN} more" if len(misfits) > _NUM_SHOWN else ""
        raise ModelError(f"model.weights {source} does not fit the model: {'; '.join(misfits[:_NUM_SHOWN])}{more}")
    complete = model.state_dict()  # keeps the version metadata that some modules ask for
    for name in complete:
        complete[name] = state.get(name, complete[name])
    model.load_state_dict(complete)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a weights file into a model, strictly.

    Args:
        model: Changed in place.
        path: A path or pyarrow filesystem URL of a `.safetensors` file, or of what `torch.save` wrote: a state_dict,
            or a mapping with one under `state_dict` or `model`. A `module.` before every name is dropped.

    Raises:
        ModelError: When the file is missing, damaged or does not fit; one sentence that names `model.weights`, the
            file and the first tensors that do not fit, with the shapes expected.
    """
    path = os.fspath(path)
    load_state(model, _state_of(path, _parse(path)), source=f"'{path}'")


def load_pretrained(model: nn.Module, family: ModelFamily, num_classes: int) -> None:
    """Load a family's published ImageNet weights into a model.

    The classifier keeps its random initialisation unless the model has the 1000 classes of ImageNet.

    Args:
        model: Built by the family; changed in place.
        family: Names the published weights.
        num_classes: Outputs of the model's classifier.

    Raises:
        ModelError: When there are none, they cannot be downloaded, or they do not fit the model.
    """
    try:
        published = family.pretrained()
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        raise ModelError(
            "model.weights is 'pretrained', but torchvision's weights could not be downloaded "
            f"({one_line(error)}); allowed without internet access: the path of a weights file, or null"
        ) from error
    state: dict[str, Any] = dict(published.state_dict())
    classifier = find_classifier(published, 1000)
    if num_classes != 1000 and classifier is not None:
        own = model.state_dict()
        for name in [name for name in state if name.startswith(f"{classifier}.")]:
            state[name] = own[name]
    load_state(model, fit_positions(model, state), source="'pretrained'")
    if hasattr(model, "transform_input"):
        model.transform_input = published.transform_input
