"""Pruned models on disk: a plan as JSON and weights as safetensors. Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError, PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.tying import UntiedError, tying, untie
from cleanai_ray.nn.consumers import add_biases
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.nn.open_layers import is_open, only_opening
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.history import earlier_plans, remember_plan
from cleanai_ray.pruning.plan import BIASES, PLAIN, TIED, PruningPlan
from cleanai_ray.pruning.plan_fit import require_fit, unwrapped
from cleanai_ray.pruning.plan_parts import identify
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.storage.run_directory import PLAN_FILE, WEIGHTS_FILE, RunDirectory
from cleanai_ray.tasks.base import find_task


def save(
    model: PruneResult | nn.Module,
    location: str | os.PathLike[str],
    *,
    plan: PruningPlan | str | os.PathLike[str] | None = None,
) -> None:
    """Write a pruned model as plan.json and weights.safetensors into a folder or URL. Nothing is pickled.

    Args:
        model: What `prune` returned; or the pruned module itself, wherever it was trained, with its plan.
        location: The folder or URL.
        plan: The plan that made the module: `result.plan`, or a folder or URL that `save` wrote to.

    Raises:
        ArtifactError: When a module is given without its plan or with another one, or something cannot be written.
    """
    if isinstance(model, PruneResult):
        if plan is not None and plan != model.plan:
            raise ArtifactError("save got the result of a pruning and another plan; allowed: the result alone")
        save_model(model.model, model.plan, RunDirectory(location))
        return
    if not isinstance(model, nn.Module):
        raise ArtifactError(f"model is a {type(model).__name__}; allowed: what `prune` returned, or a torch module")
    if plan is None:
        raise ArtifactError(
            f"save got a {type(model).__name__} without its plan; needed: plan=result.plan, or the folder that a save "
            "of the same pruning wrote"
        )
    found = plan if isinstance(plan, PruningPlan) else PruningPlan.from_json(RunDirectory(plan).read_text(PLAN_FILE))
    model = unwrapped(model)
    require_fit(model, found)
    save_model(model, found, RunDirectory(location))


def save_model(model: nn.Module, plan: PruningPlan, run: RunDirectory, folder: str = "") -> None:
    """Write a pruned model into a folder of a run directory: the weights first, the plan with their checksum last."""
    content = safetensors_bytes(model)
    prefix = f"{folder}/" if folder else ""
    run.write_bytes(prefix + WEIGHTS_FILE, content)
    run.write_text(prefix + PLAN_FILE, plan.with_weights(content).to_json())


def load(location: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a pruned model.

    Args:
        location: Folder or URL that `save` wrote to.
        factory: Builds the dense architecture; its weights do not matter.

    Raises:
        ArtifactError: When files are missing, corrupted, cut off, or belong to another architecture.
    """
    return load_model(factory(), RunDirectory(location))


def load_model(dense: nn.Module, run: RunDirectory, folder: str = "") -> nn.Module:
    """Read what `save_model` wrote, into the architecture of a dense model."""
    prefix = f"{folder}/" if folder else ""
    plan = PruningPlan.from_json(run.read_text(prefix + PLAN_FILE))
    content = run.read_bytes(prefix + WEIGHTS_FILE)
    if hashlib.sha256(content).hexdigest() != plan.model.get("weights_sha256"):
        raise ArtifactError(
            f"'{prefix}{WEIGHTS_FILE}' in '{run.location}' is corrupted, cut off, or belongs to another plan"
        )
    model = apply_plan(dense, plan)
    try:
        state = safetensors.torch.load(content)
        add_biases(model, sorted(state))
        untie(model, state)
        model.load_state_dict(_with_versions(state, model), strict=True)
    except (PruningError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"the weights do not fit the pruned model: {' '.join(str(error).split())}") from error
    remember_plan(model, plan)
    return model


def _integers(shape: Sequence[int]) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.int64)


def _like(value: Tensor, model: nn.Module) -> Tensor:
    """Return an input in the floating-point type of a model's first parameter."""
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), value.dtype)
    return value.to(dtype) if value.is_floating_point() else value


def _with_versions(state: dict[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return a state dictionary with the versions of a model's modules, which some modules read when they load."""
    found = OrderedDict(state)
    found._metadata = getattr(model.state_dict(), "_metadata", OrderedDict())  # type: ignore[attr-defined]
    return found


def apply_plan(dense: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a pruned copy of a dense model: what a plan leaves of it, and every earlier plan before.

    A model that some of the earlier plans made is taken from there on.

    Raises:
        ArtifactError: When the plan was made for another architecture.
    """
    made = earlier_plans(dense)
    same = all(one.groups == other.groups for one, other in zip(made, plan.earlier, strict=False))
    for earlier in plan.earlier[len(made) if same else 0 :]:
        dense = _apply(dense, earlier)
        add_biases(dense, earlier.model.get(BIASES, ()))
    model = _apply(dense, plan)
    remember_plan(model, plan)
    return model


def _apply(dense: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return what a plan leaves of a model, of whose other forms no layer is opened but those that the plan names.

    Plans of earlier versions name none: they were made when all of these stayed as they were, and when layers that
    share a parameter each had one of their own after a cut.
    """
    with only_opening(plan.model.get(PLAIN, ())), tying(bool(plan.model.get(TIED))):
        try:
            return _applied(dense, plan)
        except UntiedError as error:
            made_for = plan.model["class"]
            raise ArtifactError(f"the plan was made for another architecture ({made_for}): {error}") from error


def _applied(given: nn.Module, plan: PruningPlan) -> nn.Module:
    dense = open_attention(given)
    _require_opened(dense, plan)
    device = next((value.device for value in dense.parameters()), torch.device("cpu"))
    task, given_shapes = find_task(plan.model.get("task", "classification")), plan.model["example_inputs"]
    examples = [_integers(shape) if plan.model.get("tokens") else task.example_input(shape) for shape in given_shapes]
    inputs = tuple(_like(example.to(device), dense) for example in examples)
    found = identify(dense, inputs)
    if found["shapes"] != plan.model["shapes"] == identify(given, inputs)["shapes"]:
        raise ArtifactError(
            f"the plan of this {found['class']} is of an earlier version, which pruned attention as one layer; "
            "prune the model again"
        )
    if found["shapes"] != plan.model["shapes"]:
        raise ArtifactError(
            f"the plan was made for another architecture ({plan.model['class']}) than the one given "
            f"({found['class']}): their tensors differ in name or shape"
        )
    network, example = without_blocks(task.network(dense), plan.blocks), inputs if len(inputs) > 1 else inputs[0]
    graph = ChannelGraph(network, example, only=plan.removed)
    if not {*plan.removed} <= {group.name for group in graph.groups}:  # The plan was made without the checks.
        graph = ChannelGraph(network, example, check=False)
    graph.remove(plan.removed)
    for parameter in graph.model.parameters():
        parameter.grad = None
    return task.restored(graph.model)


def _require_opened(dense: nn.Module, plan: PruningPlan) -> None:
    """Check that every layer which the plan names as opened is plain, since its saved weight is that of a plain one.

    Raises:
        ArtifactError: When one is not, or is not there.
    """
    layers = dict(dense.named_modules())
    for name in plan.model.get(PLAIN, ()):
        layer = layers.get(name)
        if layer is None or not is_open(layer):
            found = "has no such layer" if layer is None else f"has a {type(layer).__name__} there that is none"
            raise ArtifactError(
                f"the plan was made for a model whose layer '{name}' is a convolution that standardises its weight or "
                f"a linear layer of another form, and the {type(dense).__qualname__} given {found}; needed: the "
                "architecture that was pruned"
            )
