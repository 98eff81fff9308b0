"""What is left of a residual block whose branch was removed: its shortcut, and the mean of what the branch gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Shortcut(nn.Module):
    """A residual block without its branch: x + mean, and what followed the sum.

    Args:
        mean: Mean of the branch for each channel, of a shape that broadcasts ([C, 1, 1] for maps, [C] for tokens);
            None: nothing is added.
        after: The modules that followed the sum, by the names that they had in the block.
    """

    def __init__(self, mean: Tensor | None, after: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.mean = None if mean is None else nn.Parameter(mean.clone())
        for name, module in after.items():
            self.add_module(name, module)
        self._after = tuple(after)

    def forward(self, x: Tensor) -> Tensor:
        """Map the block's input to an output of the same shape."""
        if self.mean is not None:
            x = x + self.mean
        for name in self._after:
            x = self._modules[name](x)  # type: ignore[misc]
        return x


class BranchMean(nn.Module):
    """The module that ended a branch: it computes nothing and returns the branch's mean, which the sum broadcasts.

    Args:
        mean: Mean of the branch for each channel, of a shape that broadcasts.
        num_outputs: Items of the tuple that the module returned (attention and its weights), of which the first is the
            mean and the others are None; 0: it returned one tensor.
    """

    def __init__(self, mean: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self._num_outputs = num_outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the mean, whatever the input."""
        return (self.mean, *[None] * (self._num_outputs - 1)) if self._num_outputs else self.mean


class Skipped(nn.Module):
    """A module of a removed branch: it computes nothing, and returns a batch of no samples, which nothing reads.

    An empty batch, and not the input itself: what the model does to the branch between its modules (an activation in
    place) must not change the shortcut.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return no samples of the first tensor given."""
        value: Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return value[:0]
