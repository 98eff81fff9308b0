"""Sums over the activations of all layers on a GPU: one kernel a layer, and two more a batch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.statistics.layer_sums import SUMS, LayerSums, sums_of

_LOG = logging.getLogger(__name__)

_TILE = 2048
"""Activations that a program reads at a time."""

_MOST_CHANNELS = 1 << 15
_MOST_STRONGEST = 64
"""Above these, the search for the strongest channels takes longer than sorting them; the plain reduction does that."""

_MOST_FLOATS = 1 << 26
"""Numbers that wait to be added up, 256 MiB; a batch of 128 images of a ResNet-50 has 20 million."""

_MOST_TABLES = 256
"""Tables that are kept; images of one size need two or three."""

Key = tuple[str, str]


@dataclass
class _Layer:
    """The columns of a layer in the totals, and how much was added to them."""

    first_column: int
    num_channels: int
    num_samples: int = 0
    num_positions: int = 0


class FusedSums:
    """Sums of layers on one device. Nothing waits for the device before they are read.

    A layer's activations are read once, in the type and layout that they have, and reduced in float32 to six numbers a
    channel and sample. These wait until all layers of the batch have run, and are then added up in float64 at once.

    Args:
        device: The device of the activations.
        threshold: Mean activation above which a sample counts as active.
        top_k: How many channels of a layer count as the strongest of a sample.
    """

    def __init__(self, device: torch.device, threshold: float, top_k: int) -> None:
        self._kernels = _kernels()
        self._device = device
        self._top_k = top_k
        self._threshold = torch.tensor([threshold], dtype=torch.float64, device=device)
        self._arena = torch.empty(0, device=device)
        self._used = 0
        self._layers: dict[Key, _Layer] = {}
        self._waiting: dict[Key, tuple[int, ...]] = {}
        self._tables: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self._totals = torch.zeros(len(SUMS), 0, dtype=torch.float64, device=device)
        self._extremes = torch.zeros(2, 0, dtype=torch.float64, device=device)

    def accepts(self, activation: Tensor) -> bool:
        """Return whether activations [samples, channels, positions] can be added."""
        return activation.shape[1] <= _MOST_CHANNELS and self._top_k <= _MOST_STRONGEST and activation.numel() > 0

    def add(self, key: Key, activation: Tensor) -> None:
        """Add activations [samples, channels, positions] of a layer."""
        num_samples, num_channels, num_positions = activation.shape
        if key in self._waiting:
            self._add_up()
        layer = self._layers.get(key)
        if layer is None:
            layer = self._layers[key] = _Layer(sum(each.num_channels for each in self._layers.values()), num_channels)
        if layer.num_channels != num_channels:
            raise ValueError(f"layer '{key[1]}' has {num_channels} channels, and had {layer.num_channels} before")
        size = num_samples * num_channels
        offset = self._take(6 * size + num_samples)
        block_c, block_p = _tile(activation)
        grid = num_samples, -(-num_channels // block_c)
        with _on(self._device):
            self._kernels.reduce_positions[grid](
                activation,
                self._arena[offset:],
                num_channels,
                num_positions,
                *activation.stride(),
                size,
                BLOCK_C=block_c,
                BLOCK_P=block_p,
            )
        self._waiting[key] = offset, num_samples, num_channels, layer.first_column, num_positions
        layer.num_samples += num_samples
        layer.num_positions += num_samples * num_positions

    def sums(self) -> dict[Key, LayerSums]:
        """Return the sums of every layer."""
        self._add_up()
        totals, (low, high) = self._totals.cpu(), self._extremes.float().cpu()
        found = {}
        for key, layer in self._layers.items():
            columns = slice(layer.first_column, layer.first_column + layer.num_channels)
            found[key] = LayerSums(
                num_samples=layer.num_samples,
                num_positions=layer.num_positions,
                totals=totals[:, columns],
                minimum=low[columns],
                maximum=high[columns],
            )
        return found

    def _take(self, number: int) -> int:
        """Return the offset of a number of floats in the arena. They are aligned, so that they are stored in blocks."""
        number = -(-number // 4) * 4
        if self._used + number > len(self._arena):
            self._add_up()
            if len(self._arena) < max(number, _MOST_FLOATS):
                size = max(number, min(2 * (len(self._arena) + number), _MOST_FLOATS))
                self._arena = torch.empty(size, device=self._device)
        offset = self._used
        self._used += number
        return offset

    def _add_up(self) -> None:
        """Add what waits to the totals."""
        if not self._waiting:
            return
        self._make_room()
        entries = tuple(self._waiting.values())
        if entries not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[entries] = torch.tensor(entries, dtype=torch.int64, device=self._device)
        table, widest = self._tables[entries], max(entry[2] for entry in entries)
        most_samples, block_c = max(entry[1] for entry in entries), 32
        constants = {"ENTRY": self._kernels.ENTRY}
        block = _power_of_two(widest)
        with _on(self._device):
            self._kernels.find_strongest[most_samples, len(entries)](
                table, self._arena, self._top_k, BLOCK=block, num_warps=min(16, max(1, block // 512)), **constants
            )
            self._kernels.add_samples[-(-widest // block_c), len(entries)](
                table,
                self._arena,
                self._totals,
                self._extremes,
                self._threshold,
                self._totals.shape[1],
                BLOCK_N=8,
                BLOCK_C=block_c,
                **constants,
            )
        self._waiting.clear()
        self._used = 0

    def _make_room(self) -> None:
        """Give every layer its columns in the totals; new ones are those of layers that ran for the first time."""
        missing = sum(layer.num_channels for layer in self._layers.values()) - self._totals.shape[1]
        if missing:
            infinity = torch.full((1, missing), float("inf"), dtype=torch.float64, device=self._device)
            self._totals = torch.cat([self._totals, self._totals.new_zeros(len(SUMS), missing)], dim=1)
            self._extremes = torch.cat([self._extremes, torch.cat([infinity, -infinity])], dim=1)


def open_fused_sums(device: torch.device, threshold: float, top_k: int) -> FusedSums | None:
    """Return sums that kernels make, or None where there are none: on processors, without Triton, or if they fail.

    The kernels are tried on a few numbers first. If they cannot be compiled or give something else than the plain
    reduction, a line is logged, and the plain reduction does their work.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    return FusedSums(device, threshold, top_k) if _kernels_work(device) else None


@lru_cache
def _kernels_work(device: torch.device) -> bool:
    """Return whether the kernels work, and log the reason if they do not."""
    try:
        check_kernels(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Whatever a compiler raises, calibration can do without it.
        reason = " ".join(str(error).split())[:300]
        _LOG.warning("activations are reduced without the fused kernels, which takes longer: %s", reason)
        return False
    return True


def check_kernels(device: torch.device) -> None:
    """Check the kernels on a few numbers.

    Raises:
        ArithmeticError: When they give something else than the plain reduction.
        Exception: Whatever the compiler raises.
    """
    values = torch.linspace(-1, 2, 2 * 3 * 5, device=device).reshape(2, 3, 5)
    fused = FusedSums(device, 0.5, 1)
    fused.add(("inputs", "probe"), values)
    found, expected = fused.sums()["inputs", "probe"], sums_of(values, 0.5, 1)
    for name in ("totals", "minimum", "maximum"):
        if not torch.allclose(getattr(found, name).cpu(), getattr(expected, name).cpu(), rtol=1e-5, atol=1e-5):
            raise ArithmeticError(f"the {name} of the fused kernel are wrong")


def _kernels() -> Any:
    """Return the module of the kernels, which imports Triton."""
    return importlib.import_module("cleanai_ray.statistics.triton_kernels")


def _tile(activation: Tensor) -> tuple[int, int]:
    """Return how many channels and positions a program reads at a time: neighbours in memory first."""
    _, num_channels, num_positions = activation.shape
    if num_positions == 1:
        return min(_power_of_two(num_channels), 1024), 1
    if activation.stride(2) <= activation.stride(1):
        positions = min(_power_of_two(num_positions), 1024)
        return min(_power_of_two(num_channels), _TILE // positions), positions
    channels = min(_power_of_two(num_channels), 64)
    return channels, min(_power_of_two(num_positions), _TILE // channels)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least a number."""
    return 1 << (number - 1).bit_length()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which kernels run on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
