"""A whole model as a torch.export program."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from cleanai_ray.deploy._files import (
    check_batch,
    file_suffix,
    private_copy,
    quiet,
    reason_of,
    require_same_output,
)
from cleanai_ray.deploy.one_tensor import returning_one_tensor
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS
from cleanai_ray.storage.whole_files import replaced_whole


def trace(model: nn.Module, example_input: Tensor) -> torch.export.ExportedProgram:
    """Capture a model's graph, with a batch of any size.

    Args:
        model: A model on the CPU in evaluation mode.
        example_input: Images [N, ...].

    Raises:
        ArtifactError: When torch.export cannot capture it.
    """
    # torch.export would take a batch of 1 for a constant.
    example = torch.cat([example_input[:1]] * 2).detach().cpu()
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        advice = "" if TorchVersion(torch.__version__) >= "2.7" else "; torch 2.7 and newer capture more models"
        raise ArtifactError(
            f"{type(model).__name__} cannot be captured by torch.export with a batch of any size: "
            f"{reason_of(error).rstrip('.') if advice else reason_of(error)}{advice}"
        ) from error


@FORMATS.register("torch_export")
@file_suffix(".pt2")
def export_torch(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """The whole model as a torch.export program (.pt2), with a batch of any size.

    Before the file gets its name, it is loaded and compared with torch on a random batch.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        path: Where to write.

    Returns:
        The path that was written.

    Raises:
        ArtifactError: When the model cannot be captured, or the program's output differs.
        EvaluationError: When a hook is left on the model.
    """
    path = Path(path)
    model = returning_one_tensor(private_copy(model), example_input, "torch_export")
    batch = check_batch(example_input)
    with replaced_whole(path) as temporary, quiet():
        torch.export.save(trace(model, example_input), temporary)
        with torch.no_grad():
            found = torch.export.load(temporary).module()(batch)
            require_same_output(model(batch), found, "torch_export")
    return path
