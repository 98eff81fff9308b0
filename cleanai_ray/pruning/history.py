"""What a pruned model was pruned by: kept with the model as text, so that it can be pruned again and loaded as one."""

from __future__ import annotations

import json
from dataclasses import replace

from torch import nn

from cleanai_ray.config.digests import digest
from cleanai_ray.nn.consumers import can_be_shifted
from cleanai_ray.pruning.plan import BIASES, PruningPlan

_ATTRIBUTE = "_cleanai_plan"
"""A plain string, so that a copy has it, and a pickled model needs nothing of this package."""


def remember_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Note the plan that a model was made by on the model itself."""
    setattr(model, _ATTRIBUTE, json.dumps({"plan": plan.to_json(), "shapes": _shapes(model)}))


def earlier_plans(model: nn.Module) -> tuple[PruningPlan, ...]:
    """Return the plans that made a model of a dense one, the first first; none if it is dense itself.

    A model whose layers were changed by other hands since it was pruned counts as dense.
    """
    noted = model.__dict__.get(_ATTRIBUTE)
    found = None if noted is None else json.loads(noted)
    if found is None or found["shapes"] != _shapes(model):
        return ()
    plan = PruningPlan.from_json(found["plan"])
    return *plan.earlier, replace(plan, earlier=(), model={**plan.model, BIASES: _biases(model)})


def _shapes(model: nn.Module) -> str:
    return digest({name: list(value.shape) for name, value in model.state_dict().items()})


def _biases(model: nn.Module) -> list[str]:
    """Return the names of all biases of layers; repair adds some that the dense model has not."""
    modules = dict(model.named_modules())
    return [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] in ("bias", "in_proj_bias") and can_be_shifted(modules[name.rpartition(".")[0]])
    ]
