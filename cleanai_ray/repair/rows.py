"""Rows of a regression: what a layer reads at drawn positions, what it makes of it, and what it should make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.nn.patches import count_positions, matrix, offset, outputs, patches
from cleanai_ray.repair.branches import Branch, branch_scale
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sampling import PositionSampler
from cleanai_ray.repair.watching import Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Reads the rows of layers.

    What a layer makes is its output before the batch-norm that follows, less the batch-norm's running mean; where it
    is visited at a sum, the shortcut is part of it.

    Attributes:
        models: The models.
        units: The layers, by name.
        sampler: The output positions to read.
    """

    models: ModelPair
    units: Mapping[str, Unit]
    sampler: PositionSampler

    def made(self, name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> tuple[Tensor, Tensor]:
        """Return the patches that a pruned model's layer reads, and what it makes of them.

        Args:
            name: The layer.
            value: Its input.
            shortcut: The other operand of the sum that its output enters, or None.
            samples: Numbers of the samples.

        Returns:
            [N, P, groups, features] and [N, P, outputs].
        """
        positions = self._positions(name, self.models.pruned.get_submodule(name), value, samples)
        rows, result = _of_input(self.models.pruned.get_submodule(name), value, positions)
        return rows, self._in_common_terms(self.models.pruned, name, result, shortcut, positions)

    def target(self, name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> Tensor:
        """Return what the dense model's layer makes, for the outputs that the pruned one has, [N, P, outputs].

        Args:
            name: The layer.
            value: Its output; of MultiheadAttention, its input.
            shortcut: As for `made`.
            samples: Numbers of the samples.
        """
        module = self.models.dense.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            positions = self._positions(name, module, value, samples)
            result = _of_input(module, value, positions)[1]
        else:
            positions = self._drawn(name, samples, _number_of_outputs(module, value, len(samples)))
            result = outputs(module, value, positions)
        result = self._in_common_terms(self.models.dense, name, result, shortcut, positions)
        kept = self.models.kept_outputs.get(name)
        return result if kept is None else result[:, :, torch.as_tensor(kept, device=result.device)]

    def _positions(self, name: str, module: nn.Module, value: Tensor, samples: range) -> Tensor:
        return self._drawn(name, samples, count_positions(module, value, len(samples)))

    def _drawn(self, name: str, samples: range, total: int) -> Tensor:
        return self.sampler.positions(name, samples, total)

    def _in_common_terms(
        self, model: nn.Module, name: str, result: Tensor, shortcut: Tensor | None, positions: Tensor
    ) -> Tensor:
        unit = self.units[name]
        if unit.consumer.norm is not None:
            mean = model.get_submodule(unit.consumer.norm).running_mean
            assert isinstance(mean, Tensor)
            result = result - mean
        if unit.branch is not None and shortcut is not None:
            beside = outputs(model.get_submodule(name), shortcut, positions)
            result = result + beside / self._scale(model, name, unit.branch)
        return result

    def _scale(self, model: nn.Module, name: str, branch: Branch) -> Tensor | float:
        """Return the factor of a branch's channels in the dense model: in both, the same ones are switched off."""
        scale, kept = branch_scale(self.models.dense, branch), self.models.kept_outputs.get(name)
        if model is self.models.dense or kept is None or not isinstance(scale, Tensor):
            return scale
        return scale[torch.as_tensor(kept, device=scale.device)]


def _of_input(module: nn.Module, value: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    rows = patches(module, value, positions)
    result = torch.einsum("npgf,gof->npgo", rows, matrix(module)).flatten(2)
    bias = offset(module)
    return rows, result if bias is None else result + bias


def _number_of_outputs(module: nn.Module, output: Tensor, num_samples: int) -> int:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return output.shape[2] * output.shape[3]
    return output.numel() // (output.shape[-1] * num_samples)
