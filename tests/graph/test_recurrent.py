"""Recurrent layers of every form: they and what they read keep their width, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cleanai_ray.api import prune
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity


def sequences() -> Tensor:
    return torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))


def last_state(memory: nn.Module, x: Tensor) -> Tensor:
    return memory(x)[1][-1]


def last_cell(memory: nn.Module, x: Tensor) -> Tensor:
    return memory(x)[1][1][-1]


def packed(memory: nn.Module, x: Tensor) -> Tensor:
    lengths = torch.full((len(x),), x.shape[1])
    return pad_packed_sequence(memory(pack_padded_sequence(x, lengths, batch_first=True))[0], batch_first=True)[0][:, 0]


def by_cells(memory: nn.Module, x: Tensor) -> Tensor:
    state: Any = None
    for step in x.unbind(1):
        state = memory(step, state)
    return state[0] if isinstance(state, tuple) else state


def first_step(memory: nn.Module, x: Tensor) -> Tensor:
    return memory(x)[0][:, 0]


# The layer of 8 inputs, what goes on of it, and its width.
FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], int]] = {
    "LSTM": (lambda: nn.LSTM(8, 5, batch_first=True), first_step, 5),
    "LSTM, last cell": (lambda: nn.LSTM(8, 5, batch_first=True), last_cell, 5),
    "LSTM, both ways, two layers": (
        lambda: nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True),
        first_step,
        10,
    ),
    "LSTM, projected": (lambda: nn.LSTM(8, 5, proj_size=3, batch_first=True), first_step, 3),
    "LSTM, packed": (lambda: nn.LSTM(8, 5, batch_first=True), packed, 5),
    "GRU, last state": (lambda: nn.GRU(8, 5, batch_first=True), last_state, 5),
    "RNN": (lambda: nn.RNN(8, 5, batch_first=True), first_step, 5),
    "LSTM cell": (lambda: nn.LSTMCell(8, 5), by_cells, 5),
    "GRU cell": (lambda: nn.GRUCell(8, 5), by_cells, 5),
}


class Reader(nn.Module):
    """Two Linear layers, a recurrent layer, and two Linear layers."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make, self.read, width = FORMS[form]
        self.stem, self.into, self.memory = nn.Linear(6, 12), nn.Linear(12, 8), make()
        self.hidden, self.fc = nn.Linear(width, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(torch.relu(self.stem(x)))
        return self.fc(torch.relu(self.hidden(self.read(self.memory, x))))


@pytest.mark.parametrize("form", FORMS)
def test_they_keep_their_width_and_are_named(form: str) -> None:
    model = Reader(form).eval()
    graph = ChannelGraph(model, sequences())
    assert {group.name for group in graph.groups} == {"stem", "hidden"}
    assert graph.notes == ("layer 'into' keeps its width: recurrent layer 'memory' reads or computes its channels",)
    result = prune(model, sequences(), method="magnitude", ratio=0.5, round_to=None)
    assert (result.model.stem.out_features, result.model.hidden.out_features) == (6, 5)
    assert model(sequences()).requires_grad  # No hook is left that cuts the graph.
    model(sequences()).sum().backward()


# Weights of matrices: 4 gates of 5 x (8 + 5) for an LSTM, 3 for a GRU, 1 for an RNN; the second layer reads 10.
WEIGHTS = {
    "LSTM": 4 * 5 * 13,
    "LSTM, last cell": 4 * 5 * 13,
    "LSTM, both ways, two layers": 2 * 4 * 5 * 13 + 2 * 4 * 5 * 15,
    "LSTM, projected": 4 * 5 * (8 + 3) + 3 * 5,
    "LSTM, packed": 4 * 5 * 13,
    "GRU, last state": 3 * 5 * 13,
    "RNN": 5 * 13,
    "LSTM cell": 4 * 5 * 13,
    "GRU cell": 3 * 5 * 13,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_step_of_them_is_counted(form: str) -> None:
    model = Reader(form).eval()
    found = measure_complexity(model, sequences())
    layers = {layer.name: layer for layer in found.layers}
    width = FORMS[form][2]
    assert layers["memory"].macs == 7 * WEIGHTS[form]
    assert layers["memory"].in_channels == 8
    assert layers["memory"].out_channels == width
    assert found.macs == 7 * (6 * 12 + 12 * 8 + WEIGHTS[form]) + width * 10 + 10 * 3
