"""The check that a model is the one that a plan made, for a model that was trained elsewhere."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.errors import ArtifactError
from cleanai_ray.pruning.plan import TIED, PruningPlan
from cleanai_ray.tasks.base import find_task


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def require_fit(model: nn.Module, plan: PruningPlan) -> None:
    """Check that a model can be the one that a plan leaves: its layers, their widths and its number of parameters.

    Whichever channels are left cannot be seen in a model, so two plans that leave the same widths both fit.

    Raises:
        ArtifactError: When it cannot.
    """
    network = find_task(plan.model.get("task", "classification")).network(model)
    found, planned = type(model).__qualname__, plan.model.get("class", "model")
    _require_layers(network, plan, f"the plan of a {planned} is not that of this {found}")
    _require_widths(network, plan)
    _require_size(network, plan)


def _require_layers(network: nn.Module, plan: PruningPlan, problem: str) -> None:
    known = {name for name, _ in network.named_modules(remove_duplicate=False)}
    known |= {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for layer in dict.fromkeys(name for group in plan.groups for name in (group.name, *group.layers)):
        if layer in known:
            continue
        inside = sorted(name for name in known if name.endswith(f".{layer}"))
        if inside:
            inner = inside[0].removesuffix(f".{layer}")
            raise ArtifactError(
                f"{problem}: its layer '{layer}' is '{inside[0]}' there; pass the module '{inner}' in it"
            )
        raise ArtifactError(f"{problem}, which has no layer '{layer}'; needed: the model that `prune` returned")


def _require_widths(network: nn.Module, plan: PruningPlan) -> None:
    """Check the layers that a group is named after, and that no other group narrows."""
    owners = Counter(layer for group in plan.groups for layer in {group.name, *group.outputs})
    for group in plan.groups:
        width, left = _width(network, group.name), group.num_channels - len(group.removed)
        # A layer whose output is split has a whole number of times as many.
        if width is not None and owners[group.name] == 1 and left and width % left:
            raise ArtifactError(
                f"layer '{group.name}' of the model has {width} channels, and the plan leaves {left} of "
                f"{group.num_channels}; needed: the plan that made this model"
            )


def _width(network: nn.Module, name: str) -> int | None:
    module = dict(network.named_modules()).get(name)
    if isinstance(module, _ConvNd):
        return module.out_channels
    return module.weight.shape[0] if isinstance(module, nn.Linear) else None


def _require_size(network: nn.Module, plan: PruningPlan) -> None:
    """Check the number of parameters, to which repair may have added biases; tied ones may be apart."""
    left = plan.achieved.get("params")
    if left is None:
        return
    found = sum(parameter.numel() for parameter in network.parameters())
    biases = (getattr(module, "bias", None) for module in network.modules() if isinstance(module, (_ConvNd, nn.Linear)))
    most = left + sum(bias.numel() for bias in biases if isinstance(bias, nn.Parameter))
    tied = {name for names in plan.model.get(TIED, ()) for name in names[1:]}
    most += sum(parameter.numel() for name, parameter in network.named_parameters() if name in tied)
    if not left <= found <= most:
        raise ArtifactError(
            f"the model has {found:,} parameters, and its plan leaves {left:,} of {plan.achieved['params_dense']:,}; "
            "needed: the plan that made this model"
        )
