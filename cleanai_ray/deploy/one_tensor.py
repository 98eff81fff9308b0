"""Models as functions that return one tensor, which files of other runtimes hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.view import as_network, own_forward

_LOGITS = "logits"


def returning_one_tensor(model: nn.Module, example_input: Tensor, file_format: str) -> nn.Module:
    """Return a model that returns one tensor: the model itself, or a view of it that returns what counts of its output.

    That is `logits` of a mapping that has it, as transformers' models return, and otherwise the only tensor.

    Args:
        model: The model, on the CPU in evaluation mode.
        example_input: Images [N, ...].
        file_format: The format that is asked for, for messages.

    Raises:
        ArtifactError: When the output holds several tensors, or none.
    """
    try:
        with torch.no_grad():
            found: Any = model(torch.cat([example_input[:1]] * 2).detach().cpu())
    except Exception:  # Capturing the model fails as well, and says why.
        return model
    if isinstance(found, Tensor):
        return model
    if isinstance(found, Mapping) and isinstance(found.get(_LOGITS), Tensor):
        return as_network(model, _logits)
    number = len(tensors_in(found))
    if number != 1:
        raise ArtifactError(
            f"the model returns a {type(found).__name__} of {number or 'no'} tensors; allowed for format "
            f"'{file_format}': one tensor, or a mapping whose '{_LOGITS}' it is (state_dict exports the "
            "weights of any model)"
        )
    return as_network(model, _only)


def _logits(network: nn.Module, inputs: Tensor) -> Any:
    return own_forward(network)(inputs)[_LOGITS]


def _only(network: nn.Module, inputs: Tensor) -> Any:
    (tensor,) = tensors_in(own_forward(network)(inputs))
    return tensor
