"""The memory that activations take."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cleanai_ray.nn.calls import tensors_in


def largest_activation(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the bytes of the largest tensor that any module of a model returns while something runs; 0 for none.

    Args:
        model: The model.
        run: Runs the model, or a part of it.
    """
    largest = 0

    def after(module: nn.Module, args: object, output: object) -> None:
        nonlocal largest
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors_in(output)]
        largest = max([largest, *sizes])

    handles = [module.register_forward_hook(after) for module in model.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return largest


def activation_sizes(model: nn.Module, run: Callable[[], object]) -> list[int]:
    """Return the bytes of what each innermost module of a model returns while something runs, in the order of calls.

    Args:
        model: The model.
        run: Runs the model, or a part of it.
    """
    sizes: list[int] = []

    def after(module: nn.Module, args: object, output: object) -> None:
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(output)))

    innermost = [module for module in model.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(after) for module in innermost]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sizes
