"""One pass of a classifier over samples: modes and weights as before, and every precision within its rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # private: the documented home of dispatch modes

from cleanai_ray.config.evaluation import Precision
from cleanai_ray.deploy.bfloat16 import Bfloat16Model
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation import one_pass
from cleanai_ray.evaluation.comparison import ClassifierScorer
from cleanai_ray.evaluation.kept_logits import KeptLogits, LogitsKeeper
from cleanai_ray.evaluation.one_pass import channels_last, run_over

UNIT = 2.0**-8
"""The unit roundoff of bfloat16: 8 significant bits, rounded to nearest."""


def numbered(images: Tensor, labels: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    parts = (value.split(size) for value in (torch.arange(len(labels)), images, labels))
    return zip(*parts, strict=True)


def logits_of(model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    found: list[Tensor] = []
    labels = torch.zeros(len(images), dtype=torch.long)
    run_over(model, numbered(images, labels), lambda _, logits, __: found.append(logits), **options)
    return torch.cat(found)


def convolutions() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * 4 * 4, 5))


def test_modes_are_put_back_and_hooks_refused() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    images = torch.randn(4, 2)
    assert torch.equal(logits_of(model, images), model[1](images)), "nothing is dropped in evaluation mode"
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
    model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="hook"):
        logits_of(model, images)


def test_an_output_that_is_no_classifiers_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"the model's output is \(4, 3, 2\), allowed is \[4, classes\]"):
        logits_of(nn.Identity(), torch.zeros(4, 3, 2))


def test_channels_last_leaves_no_trace() -> None:
    model = convolutions().eval()
    first = model[0].weight
    model[3].to(memory_format=torch.channels_last)  # a layout that the user chose
    before = {name: (value, value.data_ptr(), value.stride()) for name, value in model.named_parameters()}
    images = torch.randn(6, 3, 8, 8)
    expected = model(images)
    with channels_last(model) as is_any, torch.no_grad():
        assert is_any
        assert first.stride() != before["0.weight"][2]
        assert first.is_contiguous(memory_format=torch.channels_last)
        inside = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)
    for name, value in model.named_parameters():
        assert (value, value.data_ptr(), value.stride()) == before[name], name
    with channels_last(nn.Linear(2, 2)) as is_any:
        assert not is_any
    with channels_last(model, enabled=False) as is_any:
        assert not is_any
        assert first.data_ptr() == before["0.weight"][1]
    with pytest.raises(RuntimeError), channels_last(model):
        raise RuntimeError
    assert first.data_ptr() == before["0.weight"][1]


def test_on_cpus_weights_keep_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's backward pass crashes in channels-last on CPUs, and last bits of scores would change."""
    asked: list[bool] = []
    real = one_pass.channels_last
    monkeypatch.setattr(
        one_pass, "channels_last", lambda model, *, enabled: asked.append(enabled) or real(model, enabled=enabled)
    )
    model, images = convolutions().eval(), torch.randn(6, 3, 8, 8)
    assert torch.equal(logits_of(model, images), model(images))
    assert asked == [False]


def rounding_bound(linear: nn.Linear, images: Tensor) -> Tensor:
    """The most by which a logit [N, classes] of a linear layer differs in bfloat16.

    Weight, input, bias and result are each rounded once, by a factor within 1 +- u: a product w x is off by at most
    (2 u + u^2) |w x|, and rounding the sum y' adds u |y'|. Sums of 64 products in float32 add less than 2^-17 of the
    sum of |w x|, which is small beside u.
    """
    size = images.abs() @ linear.weight.abs().T + linear.bias.abs()
    before_rounding = size * (2 * UNIT + UNIT**2 + 2.0**-17)
    return before_rounding + UNIT * (size + before_rounding)


def test_bfloat16_changes_only_answers_that_were_close() -> None:
    linear, images = nn.Linear(64, 10), torch.randn(4000, 64)
    with torch.no_grad():
        exact = linear(images)
    labels = exact.argmax(1)
    logits = logits_of(linear, images, precision="bfloat16")
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float()), "the layer did compute in bfloat16"
    bound = rounding_bound(linear, images)
    assert ((logits - exact).abs() <= bound).all()
    # An answer can change only if the two largest logits are closer than the errors of both can move them.
    best, second = exact.topk(2, dim=1).values.T
    is_close = best - second <= 2 * bound.max(1).values
    assert 0 < is_close.sum() < len(labels) / 4
    found = {name: accuracy(linear, images, labels, name) for name in ("float32", "bfloat16")}
    assert found["float32"] == 1.0
    assert 0 < found["float32"] - found["bfloat16"] <= is_close.sum().item() / len(labels)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision) -> float:
    scorer = ClassifierScorer()
    run_over(model, numbered(images, labels), scorer.add, precision=precision)
    found = scorer.result()
    assert found is not None
    return found[0].accuracy


def test_scores_are_not_computed_in_low_precision() -> None:
    seen: list[bool] = []

    def receive(numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))

    images, labels = torch.randn(9, 4), torch.zeros(9, dtype=torch.int32)
    run_over(nn.Linear(4, 3), numbered(images, labels, 4), receive, precision="bfloat16")
    assert seen == [False] * 3
    assert not torch.is_autocast_enabled("cpu")


READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Reads(TorchDispatchMode):
    """Notes the operations that read a value back, for which a GPU would have to finish all work before them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "is_nonzero",
        ):
            self.found.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_is_read_back_before_the_last_batch(precision: Precision) -> None:
    linear, images, labels = nn.Linear(4, 3), torch.randn(9, 4), torch.tensor([0, 1, 2] * 3)
    dense = KeptLogits(numbers=np.arange(9), values=images[:, :3].numpy())
    scorer, keeper = ClassifierScorer(dense), LogitsKeeper(9)

    def receive(numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
        scorer.add(numbers, logits, labels)
        keeper.add(numbers, logits)

    with Reads() as reads:
        run_over(linear, numbered(images, labels, 2), receive, precision=precision)
        assert reads.found == []
        torch.ones(1).item()
    assert len(reads.found) == 1, "reads are noted"


def test_a_model_with_a_format_of_its_own_computes_in_it() -> None:
    own, images = Bfloat16Model(nn.Linear(64, 10)), torch.randn(50, 64)
    with torch.no_grad():
        expected = own(images)
    assert torch.equal(logits_of(own, images, precision="float16"), expected)
    double = nn.Linear(64, 10).double()
    found = logits_of(double, images.double(), precision="bfloat16")
    assert found.dtype == torch.float64
    assert torch.equal(found, double(images.double()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_the_logits_of_the_cpu(precision: Precision) -> None:
    model, images = convolutions().eval(), torch.randn(300, 3, 8, 8)
    expected = logits_of(model, images)
    found = logits_of(model, images, device="cuda", precision=precision)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, rtol=0.05, atol=0.05)
    assert all(weight.is_contiguous() for weight in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_is_not_waited_for(precision: Precision) -> None:
    model, images, labels = convolutions().cuda(), torch.randn(9, 3, 8, 8).cuda(), torch.tensor([0, 1, 2] * 3).cuda()
    dense = KeptLogits(numbers=np.arange(9), values=np.zeros((9, 5), dtype=np.float32))
    scorer = ClassifierScorer(dense)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_over(model, numbered(images, labels, 2), scorer.add, device="cuda", precision=precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scorer.result() is not None
