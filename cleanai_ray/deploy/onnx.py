"""A whole model as an ONNX file."""

from __future__ import annotations

import importlib
import itertools
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.deploy._files import (
    check_batch,
    file_suffix,
    private_copy,
    quiet,
    reason_of,
    require_same_output,
)
from cleanai_ray.deploy.one_tensor import returning_one_tensor
from cleanai_ray.deploy.onnx_attention import translatable
from cleanai_ray.deploy.torch_export import trace
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS
from cleanai_ray.storage.whole_files import replaced_whole

if TYPE_CHECKING:
    from onnx import ModelProto

_REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        ArtifactError: When one is missing; the message names it.
    """
    for package in _REQUIRED:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ArtifactError(
                f"format onnx needs the package {package}, which is not installed: pip install 'cleanai-ray[onnx]'"
            ) from error


def to_onnx(model: nn.Module, example_input: Tensor) -> bytes:
    """Return a model as the content of an ONNX file, with a batch of any size; the model is not changed.

    Before it is returned, onnxruntime's output is compared with torch's on a random batch.

    Args:
        model: The model.
        example_input: Images [N, ...].

    Raises:
        ArtifactError: When the model returns several tensors, cannot be translated, or onnxruntime cannot run it or
            gives another output.
        EvaluationError: When a hook is left on the model.
    """
    model = returning_one_tensor(private_copy(model), example_input, "onnx")
    batch = check_batch(example_input)
    with quiet():
        content = _translate(model, example_input)
    try:
        found = torch.from_numpy(open_session(content)(batch))
    except Exception as error:  # onnxruntime has classes of its own for what it cannot open or run.
        raise ArtifactError(f"onnxruntime cannot run {type(model).__name__}: {reason_of(error)}") from error
    with torch.no_grad():
        require_same_output(model(batch), found, "onnx")
    return content


def _translate(model: nn.Module, example_input: Tensor) -> bytes:
    program = trace(model, example_input)
    try:
        exported = torch.onnx.export(
            translatable(program),
            (),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        return compact(exported.model_proto).SerializeToString()
    except Exception as error:
        raise ArtifactError(f"{type(model).__name__} cannot be translated to ONNX: {reason_of(error)}") from error


def compact(file: ModelProto) -> ModelProto:
    """Remove the parts of an ONNX file that no runtime reads, in place. They are half the file of a small network.

    These are the source lines that each node came from, and the shapes of the tensors between nodes.
    """
    for node in file.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for entry in (*file.graph.initializer, *file.graph.input, *file.graph.output):
        entry.ClearField("metadata_props")
    for name in ("metadata_props", "value_info", "quantization_annotation"):
        file.graph.ClearField(name)
    file.ClearField("metadata_props")
    return file


def shorten_names(file: ModelProto) -> ModelProto:
    """Give the tensors inside an ONNX file names of a few letters, in place.

    A quantised graph has four nodes where the original has one, and each names its tensors after the layers around it,
    which is a quarter of the file of a small network. Inputs, outputs and 8-bit tensors of more than one element (the
    weights) keep their names. Nodes lose theirs, since nothing refers to them.
    """
    from onnx import TensorProto

    graph = file.graph
    weights = {entry.name for entry in graph.initializer if entry.data_type == TensorProto.INT8 and len(entry.dims) > 1}
    kept = {"", *weights, *(entry.name for entry in (*graph.input, *graph.output))}
    mentioned = [name for node in graph.node for name in (*node.input, *node.output)]
    names = {name: name for name in kept}
    fresh = (name for name in map(_letters, itertools.count()) if name not in kept)
    for name in mentioned:
        if name not in names:
            names[name] = next(fresh)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for entry in graph.initializer:
        entry.name = names.get(entry.name, entry.name)
    return file


def _letters(number: int) -> str:
    """Return the name number 0, 1, ...: a, b, ..., z, aa, ab, and so on."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = string.ascii_lowercase[place] + letters
    return letters


def open_session(content: bytes, threads: int = 0) -> Callable[[Tensor], np.ndarray]:
    """Return a function that runs an ONNX model on a batch with onnxruntime, on the CPU.

    Args:
        content: Content of an ONNX file, as `to_onnx` returns it.
        threads: Threads within an operation; 0: as many as onnxruntime chooses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Tensor) -> np.ndarray:
        (output,) = session.run(None, {name: batch.numpy()})
        return output

    return run


@FORMATS.register("onnx")
@file_suffix(".onnx")
def export_onnx(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """The whole model as an ONNX file, with a batch of any size (extra: cleanai-ray[onnx]).

    Before anything is written, onnxruntime's output is compared with torch's on a random batch. The input is called
    `images`, the output `logits`: of a model that returns a mapping, the tensor of that name.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        path: Where to write; weights are in the same file.

    Returns:
        The path that was written.

    Raises:
        ArtifactError: When a package is missing, the model cannot be translated, or onnxruntime's output differs.
        EvaluationError: When a hook is left on the model.
    """
    require_packages()
    path = Path(path)
    content = to_onnx(model, example_input)
    with replaced_whole(path) as temporary:
        temporary.write_bytes(content)
    return path
