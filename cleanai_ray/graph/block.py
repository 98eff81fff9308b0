"""Removal of branches from a model, and the check that nothing but a branch is lost.

A removed branch leaves the mean of what it gave. That constant is folded into the bias of the layer that made the
shortcut, if that layer's output is read by nothing else than this sum and the branch (`Block.fold`); if that layer went
with another removed block, into the constant which that one left. Otherwise it is a parameter of its own, which repair
and training may change, and which is cut with the channels of the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.shortcuts import BranchMean, Shortcut, Skipped

_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Block:
    """A branch that can be removed, and how (see `cleanai_ray.graph.blocks`).

    Attributes:
        name: The block: the module that becomes a shortcut, or the largest module of the branch.
        form: `block` or `branch`.
        end: The module that returns the branch's output; None: it is the block's output less its input.
        skipped: Of a branch, the modules before its end.
        after: Of a block, the child module that follows the sum, or `relu` for a ReLU that is no module.
        shape: A shape of the branch's mean that broadcasts: [C, 1, 1] for maps, [C] for tokens.
        num_outputs: Items of the tuple that the branch's end returns; 0: it returns a tensor.
        layers: Modules with weights of their own that the model loses.
        fold: The layer whose bias can take the branch's mean; None: no layer can.
    """

    name: str
    form: Literal["block", "branch"]
    end: str | None
    shape: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    num_outputs: int = 0
    layers: tuple[str, ...] = ()
    fold: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that are replaced."""
        if self.form == "block":
            return (self.name,)
        assert self.end is not None
        return (*self.skipped, self.end)

    def holds(self, name: str) -> bool:
        """Return whether a module goes with the block."""
        gone = any(f"{name}.".startswith(f"{own}.") for own in self.modules)
        return gone and not any(f"{name}.".startswith(f"{self.name}.{step}.") for step in self.after)


def remove_block(model: nn.Module, block: Block, mean: Tensor | None) -> None:
    """Remove a branch from a model, in place.

    Args:
        model: The model, with its attention in separate layers.
        block: The branch.
        mean: Its mean for each channel, [C]; None: zero.
    """
    like = next((value for name in block.modules for value in model.get_submodule(name).parameters()), torch.zeros(()))
    constant = None if mean is None else mean.to(like).reshape(block.shape)
    if block.form == "block":
        owner = model.get_submodule(block.name)
        after = {step: getattr(owner, step) if hasattr(owner, step) else nn.ReLU() for step in block.after}
        _replace(model, block.name, Shortcut(constant, after).train(owner.training))
        return
    for name in block.skipped:
        _replace(model, name, Skipped())
    assert block.end is not None
    constant = like.detach().new_zeros(block.shape) if constant is None else constant
    _replace(model, block.end, BranchMean(constant.detach(), block.num_outputs))


@torch.no_grad()
def remove_blocks(model: nn.Module, removed: Sequence[tuple[Block, Tensor]]) -> None:
    """Remove branches from a model, in place, and fold their means where that is possible.

    Args:
        model: The model, with its attention in separate layers.
        removed: The branches in execution order, none within another, and the mean of each for each channel, [C].
    """
    places: dict[str, nn.Parameter] = {}
    for place, (block, mean) in enumerate(removed):
        holder = next((other for other, _ in removed[:place] if block.fold and other.holds(block.fold)), None)
        target: Any = None
        if block.fold is not None and block.form == "block":
            target = places.get(holder.name) if holder else model.get_submodule(block.fold).bias
        remove_block(model, block, mean if target is None else None)
        if target is None:
            target = model.get_submodule(block.name if block.form == "block" else str(block.end)).mean
        else:
            target.add_(mean.to(target).reshape(target.shape))
        assert isinstance(target, nn.Parameter)
        places[block.name] = target


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@contextmanager
def branch_output(model: nn.Module, block: Block, change: Any) -> Iterator[None]:
    """Call `change(output)` with the output of a branch in each pass; what it returns, if not None, is added instead.

    Args:
        model: The model.
        block: The branch.
        change: The function.
    """

    def at_end(module: nn.Module, args: Any, output: Any) -> Any:
        changed = change(output if isinstance(output, Tensor) else output[0])
        if changed is None:
            return None
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def around(module: nn.Module, args: Any, output: Tensor) -> Any:
        changed = change(output - args[0])
        return None if changed is None else args[0] + changed

    name = block.name if block.end is None else block.end
    handle = model.get_submodule(name).register_forward_hook(around if block.end is None else at_end)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def same_as_held(model: nn.Module, block: Block, images: Tensor) -> bool:
    """Return whether a model without a branch computes what it does with the branch's output held at a constant.

    Args:
        model: The model; the block is put back.
        block: The branch.
        images: Two samples.
    """
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(block.shape, generator=generator).to(images.device)
    replaced = {name: model.get_submodule(name) for name in block.modules}
    with evaluation_mode(model):
        with branch_output(model, block, lambda output: mean.to(output).expand_as(output).clone()):
            expected = tensors_in(model(images))
        try:
            remove_block(model, block, mean)
            found = tensors_in(model(images))
        except Exception:  # Whatever the model's code expects of its modules.
            return False
        finally:
            for name, module in replaced.items():
                _replace(model, name, module)
    return len(found) == len(expected) and all(map(_close, found, expected))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(other.abs().max()) if other.numel() and other.is_floating_point() else 0.0
    return bool(torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True))
