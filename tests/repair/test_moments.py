"""Moments of consumers: accurate, mergeable, and the same however samples are divided into shards."""

from __future__ import annotations

import pickle
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import build, tiny_vit
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError, CalibrationError
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import ConsumerMoments, collect_moments
from cleanai_ray.repair.moments import CrossMoments, LayerMoments, MomentRecorder
from cleanai_ray.repair.running_moments import GramSums, full_precision
from cleanai_ray.repair.sampling import PositionSampler, _salt

LAYERS = ["conv1", "conv2", "fc"]
NET = build("plain").double()
IMAGES = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
WHOLE = collect_moments(NET, [IMAGES], layers=LAYERS, positions_per_sample=9)


def moments_of(rows: Tensor) -> LayerMoments:
    return collect_moments(nn.Sequential(nn.Linear(rows.shape[1], 1)), [rows], layers=["0"])["0"]


def assert_close(one: ConsumerMoments, other: ConsumerMoments) -> None:
    assert list(one.layers) == list(other.layers)
    for name in one.layers:
        for field in ("count", "mean", "scatter"):
            a, b = getattr(one[name], field), getattr(other[name], field)
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
def test_mean_and_covariance_equal_a_two_pass_computation(offset: float) -> None:
    rows = offset + torch.randn(500, 6) @ torch.randn(6, 6)
    exact = rows.double()
    mean = exact.mean(dim=0)
    covariance = (exact - mean).T @ (exact - mean) / len(exact)
    found = moments_of(rows)
    assert int(found.count) == 500
    assert torch.allclose(found.mean, mean, rtol=1e-12)
    assert torch.allclose(found.covariance, covariance, rtol=1e-8, atol=1e-8 * float(covariance.max()))


def test_every_position_and_every_token_counts_where_there_are_few() -> None:
    assert WHOLE["fc"].count == 24
    everything = collect_moments(NET, [IMAGES], layers=LAYERS, positions_per_sample=64)
    assert everything["conv1"].count == 24 * 64
    flat = IMAGES.movedim(1, -1).reshape(-1, 2)
    assert torch.allclose(everything["conv1"].mean, flat.mean(dim=0))
    assert torch.allclose(everything["conv1"].covariance, flat.T.cov(correction=0))
    layer = "encoder.layers.encoder_layer_0.mlp.0"
    tokens = collect_moments(tiny_vit(), [torch.randn(3, 3, 16, 16)], layers=[layer])
    assert tokens[layer].count == 3 * 17


def test_a_strided_pointwise_convolution_counts_only_what_it_reads() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1, stride=2)).double()
    read = IMAGES[:, :, ::2, ::2].movedim(1, -1).reshape(-1, 2)
    assert torch.allclose(collect_moments(net, [IMAGES], layers=["0"])["0"].covariance, read.T.cov(correction=0))


@given(st.data())
def test_sharding_and_batching_change_nothing(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=4)))
    edges = [0, *cuts, 24]
    order = data.draw(st.permutations(range(len(edges) - 1)))
    size = data.draw(st.integers(1, 24))
    shards = [
        collect_moments(
            NET,
            IMAGES[edges[i] : edges[i + 1]].split(size),
            layers=LAYERS,
            positions_per_sample=9,
            first_sample_id=edges[i],
        )
        for i in order
    ]
    total = shards[0]
    for shard in shards[1:]:
        total = total + shard
    assert_close(total, WHOLE)


@given(st.integers(1, 23))
def test_merging_is_commutative(cut: int) -> None:
    a = collect_moments(NET, [IMAGES[:cut]], layers=LAYERS)
    b = collect_moments(NET, [IMAGES[cut:]], layers=LAYERS, first_sample_id=cut)
    one, other = a + b, b + a
    for name in LAYERS:
        assert torch.equal(one[name].scatter, other[name].scatter)
        assert torch.equal(one[name].mean, other[name].mean)
        assert one[name].count == other[name].count


def test_cross_moments_add_up_to_those_of_all_rows() -> None:
    x, z = torch.randn(50, 4), 40 + torch.randn(50, 3)
    total = CrossMoments.of(x[:20], z[:20]) + CrossMoments.of(x[20:], z[20:])
    exact_x, exact_z = x.double() - x.double().mean(0), z.double() - z.double().mean(0)
    cross, covariance = total.covariances
    assert torch.allclose(cross, exact_x.T @ exact_z / 50, atol=1e-10)
    assert torch.allclose(covariance, exact_z.T @ exact_z / 50, atol=1e-10)
    assert torch.allclose(total.means[1], z.double().mean(0))


def drawn(name: str, samples: range, *, total: int, number: int) -> np.ndarray:
    """Positions drawn for each sample: the images hold the number of each position."""
    conv = nn.Conv2d(1, 1, 1)
    images = torch.arange(float(total)).reshape(1, 1, 1, total).expand(len(samples), 1, 1, total)
    return PositionSampler(number).rows(name, conv, images, samples).reshape(len(samples), -1).numpy().astype(int)


def test_positions_come_from_every_stretch_and_differ_by_sample_and_layer() -> None:
    first = drawn("a", range(200), total=80, number=8)
    stretches = np.arange(8) * 10
    assert ((first >= stretches) & (first < stretches + 10)).all()
    assert len(np.unique(first, axis=0)) == 200
    assert (drawn("b", range(200), total=80, number=8) != first).any(axis=1).all()
    assert np.array_equal(drawn("a", range(150, 200), total=80, number=8), first[150:])
    # 1,600 draws from 80 positions: 20 each, give or take; 45 would be 5.6 standard deviations off.
    counts = np.bincount(first.ravel(), minlength=80)
    assert counts.min() > 0
    assert counts.max() < 45


def test_they_survive_serialisation_without_loss() -> None:
    content = WHOLE.to_bytes()
    for restored in (ConsumerMoments.from_bytes(content), pickle.loads(pickle.dumps(WHOLE))):
        assert list(restored.layers) == LAYERS
        assert restored.to_bytes() == content
        assert torch.equal(restored["conv2"].scatter, WHOLE["conv2"].scatter)


@pytest.mark.parametrize("content", [b"", b"nonsense that is not a tensor file", WHOLE.to_bytes()[:-5]])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match="consumer moments cannot be read"):
        ConsumerMoments.from_bytes(content)


def test_moments_of_other_layers_or_widths_cannot_be_merged() -> None:
    fewer = ConsumerMoments(layers={"conv1": WHOLE["conv1"], "fc": WHOLE["fc"]})
    with pytest.raises(CalibrationError, match="only one side has layer 'conv2'"):
        WHOLE + fewer
    other = ConsumerMoments(layers={**WHOLE.layers, "fc": WHOLE["conv1"]})
    with pytest.raises(CalibrationError, match="'fc' reads 8 and 2 channels"):
        WHOLE + other


def test_the_model_is_left_as_it_was() -> None:
    net = build("residual").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect_moments(net, [IMAGES.float()], layers=["conv1", "fc"])
    assert count_hooks(net) == 0
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_activations_that_are_not_finite_are_named() -> None:
    net = build("plain")
    net.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="inputs of layer 'conv2' are not finite"):
        collect_moments(net, [IMAGES.float()], layers=["conv2"])


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_of_products_about_a_reference_are_the_moments_of_all_rows(offset: float, dtype: torch.dtype) -> None:
    """The way of a GPU, on the CPU: products in float32, sums in float64."""
    rows = (offset + torch.randn(700, 6) @ torch.randn(6, 6)).to(dtype)
    sums = GramSums(rows[:100])
    for part in rows.split([100, 1, 350, 249]):
        sums.add(part)
    found, expected = sums.moments(), LayerMoments.of(rows)
    assert found.count == expected.count == 700
    assert torch.allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-6)
    assert torch.allclose(found.scatter, expected.scatter, rtol=1e-5, atol=1e-5 * float(expected.scatter.max()))
    assert torch.equal(found.scatter, found.scatter.T)


def test_a_gpu_draws_the_positions_of_a_processor() -> None:
    """Draws on a device are made of tensors; here the device is the CPU."""
    sampler, cpu = PositionSampler(8), torch.device("cpu")
    for name, samples in (("a", range(5)), ("layer4.1.conv2", range(2**20, 2**20 + 3))):
        (drawn_there,) = sampler._in_stretches([_salt(name)], samples, cpu)
        for total in (9, 80, 3136):
            found = (drawn_there * (total / 8)).long().clamp_max_(total - 1)
            assert torch.equal(found, sampler.positions(name, samples, total))


def test_only_announced_passes_and_samples_give_moments() -> None:
    gives = np.array([True, False, True, True, False])
    with MomentRecorder(NET.eval(), layers=LAYERS, positions_per_sample=9) as recorder, torch.no_grad():
        NET(IMAGES[:7])
        recorder.announce(range(3), gives)
        NET(IMAGES[10:15])
        NET(IMAGES[:7])
        recorder.announce(range(3, 3), np.zeros(4, dtype=bool))
        NET(IMAGES[:4])
        recorder.announce(range(3, 5))
        NET(IMAGES[15:17])
    found = recorder.moments()
    assert found is not None
    assert count_hooks(NET) == 0
    given_images = torch.cat([IMAGES[[10, 12, 13]], IMAGES[15:17]])
    assert_close(found, collect_moments(NET, [given_images], layers=LAYERS, positions_per_sample=9))


def test_no_announced_pass_gives_no_moments() -> None:
    with MomentRecorder(NET.eval(), layers=LAYERS) as recorder, torch.no_grad():
        NET(IMAGES)
    assert recorder.moments() is None


@pytest.mark.parametrize("setting", ["older", "newer", "none"])
def test_products_are_exact_whatever_the_precision_of_others(setting: str) -> None:
    matmul = torch.backends.cuda.matmul
    if setting == "newer" and not hasattr(matmul, "fp32_precision"):
        pytest.skip("this PyTorch has no matmul.fp32_precision")
    try:
        if setting == "older":
            matmul.allow_tf32 = True
        elif setting == "newer":
            matmul.fp32_precision = "tf32"
        else:
            matmul.allow_tf32 = False
        name = "fp32_precision" if setting == "newer" else "allow_tf32"
        before = getattr(matmul, name)
        with full_precision(torch.device("cuda")):
            assert getattr(matmul, name) in (False, "ieee")
            assert not torch.is_autocast_enabled("cuda")
        assert getattr(matmul, name) == before
    finally:
        matmul.allow_tf32 = False


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_others_can_be_read_and_is_theirs_again(
    precision: Literal["highest", "high", "medium"],
) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        with full_precision(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_a_gpu_gives_the_moments_of_a_processor() -> None:
    net, images = build("plain"), IMAGES.float()
    expected = collect_moments(net, images.split(10), layers=LAYERS, positions_per_sample=9)
    found = collect_moments(net.cuda(), images.split(10), layers=LAYERS, positions_per_sample=9)
    for name in LAYERS:
        assert found[name].count == expected[name].count
        for field in ("mean", "scatter"):
            mine, other = getattr(found[name], field), getattr(expected[name], field)
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())), (name, field)
