"""Conversion of a pickled checkpoint to a safetensors file: `python -m cleanai_ray.models.convert FILE OUT`.

Unpickling can run any code: convert only files whose makers you trust, and only where their classes can be imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cleanai_ray.models.checkpoints import states_in


def convert(source: str, out: str, key: str | None = None) -> str:
    """Write the tensors of a checkpoint as a safetensors file, and return a line that says what was taken.

    Args:
        source: What `torch.save` wrote: a model, a state dictionary or a checkpoint that holds one. It is unpickled.
        out: The file to write.
        key: Keys that lead to the state dictionary, joined by full stops; by default the largest one, the first of
            equals.

    Raises:
        ValueError: When there are no tensors, or none at the key.
    """
    content = _without_modules(torch.load(source, map_location="cpu", weights_only=False))
    states = {".".join(place): state for place, state in states_in(content)}
    if key is not None and key not in states:
        raise ValueError(f"'{source}' has no tensors at '{key}'; allowed: {', '.join(map(repr, states)) or 'none'}")
    if not states:
        raise ValueError(f"'{source}' holds no tensors by name")
    place = max(states, key=lambda name: len(states[name])) if key is None else key
    copies = {name: _own(tensor) for name, tensor in states[place].items()}
    Path(out).write_bytes(safetensors.torch.save(copies))  # save_file lets nobody else read it
    return f"{len(copies)} tensors{f' of {place!r}' if place else ''} written to {out}"


def _without_modules(content: Any) -> Any:
    """Return content with every module replaced by its state dictionary."""
    if isinstance(content, nn.Module):
        return dict(content.state_dict())
    if isinstance(content, Mapping):
        return {key: _without_modules(value) for key, value in content.items()}
    return content


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().contiguous()


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert as the command line says; 2 and a line where that is not possible."""
    parser = argparse.ArgumentParser(prog="python -m cleanai_ray.models.convert", description=__doc__)
    parser.add_argument("file", help="what torch.save wrote; it is unpickled")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--key", help="keys that lead to the state dictionary, joined by full stops")
    given = parser.parse_args(arguments)
    try:
        line, status = convert(given.file, given.out, given.key), 0
    except Exception as error:  # unpickling runs the file's own code, which can raise anything
        line, status = f"{type(error).__name__}: {' '.join(str(error).split())}", 2
    (sys.stderr if status else sys.stdout).write(line + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
