"""Hooks left on a model: they falsify measurements, which therefore refuse such a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cleanai_ray.errors import EvaluationError

_HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# The old forms of weight and spectral norm are hooks that compute the weight: they belong to the model.
_PART_OF_THE_MODEL = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def _hooks(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        for table in _HOOK_TABLES:
            for hook in (getattr(module, table, None) or {}).values():
                if type(hook).__module__ not in _PART_OF_THE_MODEL:
                    yield name, hook


def count_hooks(model: nn.Module) -> int:
    """Return how many forward and backward hooks (and pre-hooks) a model and its submodules carry.

    The hooks of `torch.nn.utils.weight_norm` and `spectral_norm` compute weights, and are not counted.
    """
    return sum(1 for _ in _hooks(model))


def require_no_hooks(model: nn.Module) -> None:
    """Refuse a model that carries hooks.

    Raises:
        EvaluationError: When there is one; the message names the first module that has it.
    """
    first = next(_hooks(model), None)
    if first is not None:
        name, _ = first
        raise EvaluationError(
            f"{count_hooks(model)} hook(s) are left on the model, the first on '{name or type(model).__name__}': "
            "remove them before measuring"
        )
