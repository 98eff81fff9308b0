"""Memory that runs out makes parts of batches; what cannot be compiled trains as it is; precision."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from fine_tuning_cases import MakeNet, assert_same, run
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.training.precision import Precision
from cleanai_ray.training.prefetch import prefetch

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


class Hungry(nn.Module):
    """A network whose device holds a number of images at a time."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network = network
        self.most = most
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        if self.training:
            self.sizes.append(len(images))
        return self.network(images)


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_limit, "size", None)


def plain_net() -> nn.Sequential:
    """A network without batch-norm and dropout: a batch in parts has the gradient of the batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()


def test_a_batch_in_parts_is_the_step_of_the_batch(digits: Any) -> None:
    """In float64, up to rounding. Batches have 100 images, and validation 200, 200 and 197."""
    as_double = {
        "train_batches": lambda epoch: ((images.double(), labels) for images, labels in digits.train_batches(epoch)),
        "validation_batches": lambda: [(images.double(), labels) for images, labels in digits.validation_batches()],
    }
    whole, parts = Hungry(plain_net(), 1000), Hungry(plain_net(), 30)
    expected = run(whole, digits, epochs=2, gradient_clip=0.5, **as_double)
    with collected_notices() as notices:
        found = run(parts, digits, epochs=2, gradient_clip=0.5, **as_double)
    assert whole.sizes == [100] * 24
    assert parts.sizes == [25] * 96
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["train_accuracy"] == theirs["train_accuracy"]
    training = [text for text in notices if "fine-tuning" in text]
    assert len(training) == 1
    assert all(words in training[0] for words in ("100 samples in 4 parts of at most 25", "batch-norm"))
    assert [text for text in notices if "validation ran on at most" in text]


def test_a_single_image_that_is_too_large_is_an_error(digits: Any) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Hungry(plain_net().float(), 0), digits, epochs=1, start_competes=False)


def test_a_model_that_cannot_be_compiled_trains_as_it_is_and_that_is_told(
    digits: Any, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    found = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, mode: found(model, backend=no_backend))
    plain, compiled = make_net(), make_net()
    run(plain, digits, epochs=1)
    with collected_notices() as notices:
        run(compiled, digits, epochs=1, compile=True)
    assert_same(compiled.state_dict(), plain.state_dict())
    (text,) = notices
    assert text.startswith("finetune.compile: the model trains without being compiled, since BackendCompilerFailed: ")
    assert "no compiler on this machine" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_compiled_model_learns_the_same(digits: Any, make_net: MakeNet) -> None:
    def net() -> nn.Sequential:
        return make_net()[:5].append(nn.Linear(128, 10))  # without dropout, whose random numbers may differ

    plain = net()
    model = copy.deepcopy(plain)
    expected = run(plain, digits, epochs=1)
    with collected_notices() as notices:
        found = run(model, digits, epochs=1, compile="default")
    assert notices == []
    assert list(model.state_dict()) == list(plain.state_dict())
    assert found.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"], rel=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16)])
def test_precision_on_a_cpu(precision: str, dtype: torch.dtype | None) -> None:
    found = Precision(FineTuneSection(precision=precision), torch.device("cpu"))  # type: ignore[arg-type]
    assert found.dtype == dtype
    assert not found.scaler.is_enabled()
    with found.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == (dtype or torch.float32)


def test_training_in_bfloat16_learns(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    result = run(model, digits, epochs=3, precision="bfloat16")
    assert result.history[-1]["validation_accuracy"] > 0.8
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_batches_come_as_they_are_on_a_cpu() -> None:
    pairs = [(torch.zeros(2, 3), torch.tensor([1, 2], dtype=torch.int32)), (torch.ones(1, 3), None)]
    found = list(prefetch(pairs, torch.device("cpu")))
    assert found[0][0] is pairs[0][0]
    assert found[0][1].dtype == torch.int64
    assert found[1][1] is None


def test_the_state_of_another_device_is_taken_over_as_this_one_wants_it(digits: Any) -> None:
    """On a GPU, steps are fused and momenta lie channels-last, which steps on a CPU would read in the wrong order."""
    from cleanai_ray.training.context import LocalContext
    from cleanai_ray.training.distillation import Supervision
    from cleanai_ray.training.stepper import Stepper

    def stepper(model: nn.Module) -> Stepper:
        section = FineTuneSection(epochs=2)
        return Stepper(model, section=section, steps_per_epoch=4, context=LocalContext(), supervision=Supervision())

    batches = list(digits.train_batches(1))
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
    first = stepper(one)
    first.run_epoch(1, batches)
    state = copy.deepcopy(first.state())
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    for values in state["optimizer"]["state"].values():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() == 4:
                values[name] = value.to(memory_format=torch.channels_last)
    other = copy.deepcopy(one)
    second = stepper(other)
    second.restore(state)
    for each in (first, second):
        each.run_epoch(2, batches)
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", [pytest.param("cuda", marks=needs_gpu)])
def test_training_on_a_gpu_uses_bfloat16_where_there_is_one(digits: Any, make_net: MakeNet, kind: str) -> None:
    found = Precision(FineTuneSection(), torch.device(kind))
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert found.dtype == (torch.bfloat16 if has_bfloat16 else torch.float16)
    assert found.scaler.is_enabled() is not has_bfloat16


@pytest.mark.parametrize("kind", [pytest.param("cuda", marks=needs_gpu)])
def test_no_step_on_a_gpu_waits_for_it(digits: Any, make_net: MakeNet, kind: str) -> None:
    """With torch's own alarm for waiting; batches lie in pinned memory, and an epoch is shorter than a check."""
    from cleanai_ray.training.context import LocalContext
    from cleanai_ray.training.distillation import Supervision
    from cleanai_ray.training.stepper import Stepper

    pinned = [(images.pin_memory(), labels.pin_memory()) for images, labels in digits.train_batches(1)]
    stepper = Stepper(
        make_net().to(kind),
        section=FineTuneSection(epochs=2, ema_decay=0.9, gradient_clip=1.0),
        steps_per_epoch=12,
        context=LocalContext(device=kind),
        supervision=Supervision(),
    )
    stepper.run_epoch(1, pinned)
    alarms: list[int] = []

    def after_step(position: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if position.done < 12 else "default")
        alarms.append(position.done)

    try:
        stepper.run_epoch(2, pinned, None, after_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(alarms) == 12


@pytest.mark.parametrize("kind", [pytest.param("cuda", marks=needs_gpu)])
def test_prefetched_batches_on_a_gpu_are_the_batches(kind: str) -> None:
    pairs = [(torch.full((4, 3, 8, 8), float(number)).pin_memory(), torch.arange(4)) for number in range(20)]
    for number, (images, labels) in enumerate(prefetch(pairs, torch.device(kind))):
        torch.cuda._sleep(10**6)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.eq(number).all()
        assert labels.tolist() == [0, 1, 2, 3]
