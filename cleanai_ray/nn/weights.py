"""A model's weights as the bytes of a safetensors file."""

from __future__ import annotations

import safetensors.torch
from torch import Tensor, nn


def safetensors_bytes(model: nn.Module) -> bytes:
    """Return a model's state dictionary as the content of a safetensors file.

    It has every name of the state dictionary, so that `load_state_dict` accepts it as it is. Tensors that share memory
    are written once for each name, and of a view only the elements that it shows.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        state[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return safetensors.torch.save(state)
