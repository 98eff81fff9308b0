"""The reader of weights that a written `model.py` contains: a safetensors file, with torch alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name: 8 bytes of length, a header in JSON, and the numbers."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
    types |= {"U8": torch.uint8, "BOOL": torch.bool}
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + place for place in entry["data_offsets"])
        numbers = torch.empty(0, dtype=types[entry["dtype"]])
        if end > begin:
            count = (end - begin) // numbers.element_size()
            numbers = torch.frombuffer(content, dtype=numbers.dtype, count=count, offset=begin).clone()
        found[name] = numbers.reshape(entry["shape"])
    return found
