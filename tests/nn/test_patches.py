"""Layers as linear maps of patches: patches times matrix plus offset is the layer's own output at each position."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.nn.patches import count_positions, matrix, offset, outputs, patches, reads_patches, set_matrix

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def every_position(module: nn.Module, value: Tensor, num_samples: int) -> Tensor:
    return torch.arange(count_positions(module, value, num_samples)).expand(num_samples, -1)


def through_patches(module: nn.Module, value: Tensor, positions: Tensor) -> Tensor:
    """What a layer makes, from patches and matrix alone, [N, P, outputs]."""
    made = torch.einsum("npgf,gof->npgo", patches(module, value, positions), matrix(module)).flatten(2)
    bias = offset(module)
    return made if bias is None else made + bias


def assert_is_a_map_of_patches(module: nn.Module, value: Tensor, expected: Tensor, num_samples: int = 2) -> None:
    """All positions in order, some positions twice and out of order, and a weight that is set to what it is."""
    everywhere = every_position(module, value, num_samples)
    torch.testing.assert_close(through_patches(module, value, everywhere), outputs(module, expected, everywhere))
    number = everywhere.shape[1]
    some = torch.randint(number, (num_samples, 3))
    torch.testing.assert_close(through_patches(module, value, some), outputs(module, expected, some))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    set_matrix(module, matrix(module).clone())
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


@st.composite
def convolutions(draw: Any) -> nn.Conv2d:
    kernel, dilation = draw(pairs), draw(pairs)
    groups, inputs, made = draw(st.sampled_from([(1, 3, 4), (2, 4, 6), (3, 3, 3), (3, 3, 6)]))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1, 1) if padding == "same" else draw(pairs)
    if padding == "numbers":
        padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return nn.Conv2d(inputs, made, kernel, bias=draw(st.booleans()), **settings).double()


@given(convolutions())
def test_a_convolution_is_a_map_of_its_patches(module: nn.Conv2d) -> None:
    value = torch.randn(2, module.in_channels, 9, 8, dtype=torch.float64)
    expected = module(value)
    assert count_positions(module, value, 2) == expected.shape[2] * expected.shape[3]
    # The positions are the output's pixels, row by row.
    rows = outputs(module, expected, every_position(module, value, 2))
    assert torch.equal(rows, expected.flatten(2).transpose(1, 2))
    assert_is_a_map_of_patches(module, value, expected)


@st.composite
def transposed_convolutions(draw: Any) -> nn.ConvTranspose2d:
    kernel, dilation, stride = draw(pairs), draw(pairs), draw(pairs)
    groups, inputs, made = draw(st.sampled_from([(1, 3, 4), (2, 4, 6), (3, 3, 3)]))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    # More padding than the kernel reaches cuts the input itself.
    padding = tuple(draw(st.integers(0, most + 1)) for most in reach)
    below = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    more = tuple(draw(st.integers(0, most - 1)) for most in below)
    settings = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation, "groups": groups}
    return nn.ConvTranspose2d(inputs, made, kernel, bias=draw(st.booleans()), **settings).double()


@given(transposed_convolutions())
def test_a_transposed_convolution_is_a_map_of_its_patches(module: nn.ConvTranspose2d) -> None:
    value = torch.randn(2, module.in_channels, 6, 5, dtype=torch.float64)
    expected = module(value)
    assert count_positions(module, value, 2) == expected.shape[2] * expected.shape[3]
    assert_is_a_map_of_patches(module, value, expected)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_reads_a_token_at_each_position(shape: tuple[int, ...], bias: bool) -> None:
    module = nn.Linear(5, 3, bias=bias).double()
    value = torch.randn(shape, dtype=torch.float64)
    assert count_positions(module, value, 2) == value[0].numel() // 5
    assert_is_a_map_of_patches(module, value, module(value))


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_in_projection_of_attention_gives_query_key_and_value(batch_first: bool) -> None:
    module = nn.MultiheadAttention(6, 2, batch_first=batch_first).double()
    nn.init.normal_(module.in_proj_bias)
    value = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = functional.linear(value, module.in_proj_weight, module.in_proj_bias)
    if not batch_first:
        value, expected = value.transpose(0, 1), expected.transpose(0, 1)
    assert count_positions(module, value, 2) == 5
    assert_is_a_map_of_patches(module, value, expected)


def test_features_are_taps_times_input_channels() -> None:
    """By hand: a kernel of 1 x 2 that reads two channels."""
    module = nn.Conv2d(2, 1, (1, 2), bias=False)
    value = torch.tensor([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]])
    assert patches(module, value, torch.tensor([[1]])).tolist() == [[[[2.0, 5.0, 3.0, 6.0]]]]
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[[[10.0, 20.0]], [[30.0, 40.0]]]]))
    assert matrix(module).tolist() == [[[10.0, 30.0, 20.0, 40.0]]]


def test_setting_a_matrix_is_undone_by_reading_it() -> None:
    modules = [
        nn.Conv2d(4, 6, (2, 3), groups=2),
        nn.ConvTranspose2d(4, 6, (2, 3), groups=2),
        nn.Linear(4, 6),
        nn.MultiheadAttention(4, 2),
    ]
    for module, kind in itertools.product(modules, (torch.float32, torch.float16)):
        module.to(kind)
        wanted = torch.randn(matrix(module).shape).to(kind)
        set_matrix(module, wanted.double())
        assert torch.equal(matrix(module), wanted)


def test_other_modules_do_not_read_patches() -> None:
    apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
    others = [
        apart,
        nn.Conv1d(2, 2, 1),
        nn.Conv3d(2, 2, 1),
        nn.BatchNorm2d(2),
        nn.Bilinear(2, 2, 2),
        nn.Embedding(3, 2),
    ]
    assert not any(map(reads_patches, others))
    assert all(map(reads_patches, [nn.MultiheadAttention(4, 2), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1)]))
