"""Named tensors and a header as the bytes of a safetensors file: equal content, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cleanai_ray.errors import ArtifactError


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Serialise without loss.

    The header is one metadata key, because safetensors writes several in no particular order.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(contiguous, {"header": json.dumps(header)})


def unpack(content: bytes, kind: str, format_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header that `pack` was given.

    Args:
        content: The bytes.
        kind: What the bytes should be, for the error message.
        format_name: The format that the header must name.

    Raises:
        ArtifactError: When the bytes are something else.
    """
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["header"])
        if header["format"] != format_name:
            raise ValueError(f"its format is {header['format']}")
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{kind} cannot be read: {error} (expected {format_name})") from error
    return tensors, header
