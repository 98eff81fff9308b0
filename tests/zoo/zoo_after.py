"""One architecture repaired and exported: what is left of it at the ratio of the zoo."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_architectures import Architecture, build
from zoo_trial import RATIO, Note

import cleanai_ray as cleanai
from cleanai_ray.errors import CleanAIError
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.registry import FORMATS
from cleanai_ray.repair import RepairOptions, repair

SAMPLES = 8
EQUAL = "equal"

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_KINDS = {"be captured": "not captured", "be translated": "not translated", "allowed for format": "several outputs"}


def try_afterwards(architecture: Architecture, note: Note) -> None:
    """Prune one architecture at the ratio, repair it in closed form, and export it to ONNX; nothing is raised.

    Args:
        architecture: The architecture.
        note: Takes `repair`: how many of the layers that lost inputs are refitted, and the share of the output's
            difference to the dense model that is left on the samples that repair read; `onnx`: `EQUAL`, or in a word
            why there is no file; `repair_told` and `onnx_told`: what an error says.
    """
    warnings.simplefilter("ignore")
    try:
        model, inputs = build(architecture)
        result = cleanai.prune(model, inputs, method="magnitude", ratio=RATIO, round_to=None)
    except Exception as error:
        note("ended", f"not pruned: {type(error).__name__}: {error}")
        return
    note("repair", "not done in time")
    for name, value in _repair(model, result, samples_like(inputs)).items():
        note(name, value)
    note("onnx", "not done in time")
    for name, value in _export(result.model, inputs).items():
        note(name, value)


def samples_like(inputs: Tensor) -> Tensor:
    """Return `SAMPLES` samples: random numbers, or tokens of those that the example holds."""
    generator = torch.Generator().manual_seed(3)
    if inputs.is_floating_point():
        return torch.randn(SAMPLES, *inputs.shape[1:], generator=generator)
    known = inputs.unique()
    return known[torch.randint(len(known), (SAMPLES, *inputs.shape[1:]), generator=generator)]


def _repair(model: nn.Module, result: cleanai.PruneResult, samples: Tensor) -> dict[str, str]:
    try:
        options = RepairOptions(compensation="closed_form", batch_norm="none")
        outcome = repair(model, result, [samples], options)
        lost = [name for name in result.kept_inputs if could_be_refitted(result.model.get_submodule(name))]
        refitted = [name for name in lost if is_changed(result.model, outcome.model, name)]
        before, after = (distance(model, other, samples) for other in (result.model, outcome.model))
    except CleanAIError as error:
        return {"repair": "refused", "repair_told": str(error)}
    except Exception as error:  # Whatever else is raised is a fault.
        return {"repair": f"crashed ({type(error).__name__})", "repair_told": str(error)}
    left = after / before if before else float(after > 0)
    return {"repair": f"{len(refitted)} of {len(lost)}, {left:.2f}"}


def could_be_refitted(layer: nn.Module) -> bool:
    """Return whether a layer that lost inputs has weights for what they told: it is linear, and not depthwise."""
    depthwise = isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels
    return isinstance(layer, _LAYERS) and not depthwise


def is_changed(before: nn.Module, after: nn.Module, name: str) -> bool:
    """Return whether the weights of a layer differ between two models."""
    one, other = (model.get_submodule(name).state_dict() for model in (before, after))
    return one.keys() != other.keys() or any(not torch.equal(value, other[key]) for key, value in one.items())


@torch.no_grad()
def distance(dense: nn.Module, other: nn.Module, samples: Tensor) -> float:
    """Return the root of the mean squared difference of two models' outputs."""
    outputs = zip(tensors_in(dense.eval()(samples)), tensors_in(other.eval()(samples)), strict=True)
    pairs = [(one, two) for one, two in outputs if one.is_floating_point()]
    squares = torch.cat([(one - two).double().square().flatten() for one, two in pairs])
    return float(squares.mean().sqrt())


def _export(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            FORMATS.get("onnx")(model, inputs, Path(folder) / "model.onnx")
    except CleanAIError as error:
        told = str(error)
        word = next((word for part, word in _KINDS.items() if part in told), "refused")
        differs = told.partition("differs from torch by ")[2].partition(",")[0]
        return {"onnx": f"differs by {differs}" if differs else word, "onnx_told": told}
    except Exception as error:
        return {"onnx": f"crashed ({type(error).__name__})", "onnx_told": str(error)}
    return {"onnx": EQUAL}
