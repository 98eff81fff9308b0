"""Loading the weights of a model: from a file, or torchvision's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from torch import Tensor, nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.checkpoints import Taken, take_weights
from cleanai_ray.models.family import ModelFamily, find_classifier, fit_positions, one_line
from cleanai_ray.models.safe_files import read_checkpoint
from cleanai_ray.nn.notices import inform, notice, remark

PUBLISHED_CLASSES = 1000
"""The classes of torchvision's published weights, those of ImageNet."""

_NUM_SHOWN = 3


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


def _other_head(model: nn.Module, state: Mapping[str, Tensor], misfits: list[str]) -> str | None:
    """Return the name of the head, if nothing but its number of outputs is wrong."""
    layers = {misfit.partition(" ")[0].rpartition(".")[0] for misfit in misfits}
    layer = layers.pop() if len(layers) == 1 else ""
    weight, own = state.get(f"{layer}.weight"), model.state_dict().get(f"{layer}.weight")
    if not layer or weight is None or own is None or weight.dim() < 2:
        return None
    return None if weight.shape[1:] != own.shape[1:] or len(weight) == len(own) else layer


def _head_misfit(model: nn.Module, state: Mapping[str, Tensor], head: str) -> str:
    weight, own = state[f"{head}.weight"], model.state_dict()[f"{head}.weight"]
    return (
        f"its head '{head}' has {len(weight)} outputs (expected {len(own)}, model.num_classes; with model.train, a new "
        f"head is trained); {head}.weight is {_shape(weight)} (expected {_shape(own)})"
    )


def _with_own_head(model: nn.Module, state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Return a state whose head is the model's own: either head may have a bias that the other lacks."""
    prefix = f"{head}."
    body = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return body | {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}


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
        head = _other_head(model, state, misfits)
        misfits = misfits if head is None else [_head_misfit(model, state, head)]
        more = f"; and {len(misfits) - _NUM_SHOWN} more" if len(misfits) > _NUM_SHOWN else ""
        raise ModelError(f"model.weights {source} does not fit the model: {'; '.join(misfits[:_NUM_SHOWN])}{more}")
    complete = model.state_dict()  # keeps the version metadata that some modules ask for
    for name in complete:
        complete[name] = state.get(name, complete[name])
    model.load_state_dict(complete)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], key: str | None = None, *, may_lack_head: bool = False
) -> None:
    """Load a weights file into a model, strictly, and tell in a line what was taken out of a trainer's checkpoint.

    Args:
        model: Changed in place.
        path: A path or pyarrow filesystem URL of a `.safetensors` file, or of what `torch.save` wrote: a state_dict, or
            a checkpoint that holds one at some depth (`state_dict`, `model`, `model_ema`, Lightning's). Words before
            every name (`module.`, `model.`, `_orig_mod.`) are dropped, and tensors beside the model's are left out.
        key: `model.weights_key`: which of several state dictionaries to take.
        may_lack_head: Whether the model keeps its own head, to be trained, where the file's has another number of
            outputs; a line tells it.

    Raises:
        ModelError: When the file is missing, damaged, needs unpickling or does not fit; one sentence that names
            `model.weights`, the file and the first tensors that do not fit, with the shapes expected.
    """
    path = os.fspath(path)
    taken = _taken(model, path, key)
    state = taken.state
    if may_lack_head and (head := _other_head(model, state, _misfits(model, state))) is not None:
        own = model.state_dict()[f"{head}.weight"]
        remark(
            f"model.weights '{path}': the head '{head}' has {len(state[f'{head}.weight'])} outputs, and the model "
            f"{len(own)}; it is new, and model.train trains it"
        )
        state = _with_own_head(model, state, head)
    load_state(model, state, source=f"'{path}'")
    if taken.sentence:
        # Other weights that fit as well may be the ones that were meant; all else is how such a file is read.
        tell = notice if taken.others else inform
        tell(f"model.weights '{path}': {taken.sentence}")


def has_other_head(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> bool:
    """Return whether a weights file fits a model but for the number of its head's outputs.

    Args:
        model: The model, which is not changed.
        path: As for `load_weights`.
        key: As for `load_weights`.

    Raises:
        ModelError: As `load_weights` does, where the file cannot be read.
    """
    state = _taken(model, os.fspath(path), key).state
    return _other_head(model, state, _misfits(model, state)) is not None


def _taken(model: nn.Module, path: str, key: str | None) -> Taken:
    """Return the tensors of a file that are meant for a model."""
    taken = take_weights(read_checkpoint(path), model.state_dict().keys(), key)
    if isinstance(taken, str):
        raise ModelError(f"model.weights '{path}' {taken}")
    return taken


def load_pretrained(model: nn.Module, family: ModelFamily, num_classes: int) -> bool:
    """Load a family's published ImageNet weights into a model.

    The classifier keeps its random initialisation unless the model has the 1000 classes of ImageNet.

    Args:
        model: Built by the family; changed in place.
        family: Names the published weights.
        num_classes: Outputs of the model's classifier.

    Returns:
        Whether the classifier is new.

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
    classifier = None if num_classes == PUBLISHED_CLASSES else find_classifier(published, PUBLISHED_CLASSES)
    if classifier is not None:
        state = _with_own_head(model, state, classifier)
    load_state(model, fit_positions(model, state), source="'pretrained'")
    if hasattr(model, "transform_input"):
        model.transform_input = published.transform_input
    return classifier is not None
