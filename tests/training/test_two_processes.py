"""The loop in two real processes (gloo), with gradients averaged by DistributedDataParallel."""

from __future__ import annotations

import contextlib
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.errors import SampleError
from cleanai_ray.training import position
from cleanai_ray.training.context import LocalContext, TrainingContext, TrainingError
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import fine_tune
from cleanai_ray.training.part import ScoringPart, TrainingPart
from cleanai_ray.training.processes import ProcessGroupContext
from cleanai_ray.training.synchronized import global_batch_norm

STEPS, BATCH = 6, 9  # nine images are five for one process and four for the other


def train(
    context: TrainingContext, *, batch_norm: bool, learning_rate: float = 0.1, sees_start: bool = True
) -> dict[str, Any]:
    """Train on this process's share of every batch; the share of a single process is all of it.

    If not `sees_start`, validation does not judge the start, and the same batches as other samples do.
    """
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
    model = nn.Sequential(nn.Linear(4, 16), norm, nn.ReLU(), nn.Linear(16, 3))
    images = torch.randn(STEPS, BATCH, 4)
    labels = (images[..., 0] > 0).long() + (images[..., 1] > 0).long()
    share = slice(context.rank, None, context.world_size)
    batches = [(images[step, share], labels[step, share]) for step in range(STEPS)]
    kinds = [type(module) for module in model.modules()]
    section = FineTuneSection.model_validate({"epochs": 3, "learning_rate": learning_rate, "scheduler": "constant"})
    result = fine_tune(
        model,
        section=section,
        data=TrainingData(
            train_batches=lambda epoch: batches,
            steps_per_epoch=STEPS,
            validation_batches=lambda: batches,
            start_competes=sees_start,
            unseen_batches=lambda: batches,
        ),
        context=context,
        seed=0,
    )
    assert [type(module) for module in model.modules()] == kinds
    return {"weights": model.state_dict(), "history": list(result.history), "best_epoch": result.best_epoch}


class InMemory:
    """Keeps the last checkpoint."""

    content: bytes | None = None

    def save(self, content: bytes, part: str = "") -> None:
        self.content = content

    def load(self, part: str = "") -> bytes | None:
        return self.content


class Interrupted(Exception):
    pass


def train_with_dropout(store: InMemory, *, ends_after: int = 10**9) -> dict[str, Any]:
    """Train two epochs, with a checkpoint after each step; a process may be interrupted after some of the steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    images = torch.randn(STEPS, BATCH, 4)
    rank, taken = distributed.get_rank(), []
    batches = [(images[step, rank::2], images[step, rank::2].argmax(1).clamp(max=2)) for step in range(STEPS)]

    def train_batches(epoch: int) -> Any:
        for batch in batches:
            if len(taken) == ends_after:
                raise Interrupted
            taken.append(epoch)
            yield batch

    section = {"epochs": 2, "learning_rate": 0.1, "checkpoint_minutes": 1e-9}
    result = fine_tune(
        model,
        section=FineTuneSection.model_validate(section),
        data=TrainingData(train_batches=train_batches, steps_per_epoch=STEPS, validation_batches=lambda: batches),
        context=ProcessGroupContext(device="cpu", checkpoints=store),
        seed=0,
    )
    return {"weights": model.state_dict(), "losses": [row["train_loss"] for row in result.history]}


def normalise(values: torch.Tensor, momentum: float | None) -> dict[str, Any]:
    """Pass values [N, 3, H, W] through a batch-norm, twice, and return all that comes of it for the whole batch."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))
    nn.init.normal_(model[0].weight)
    together = distributed.is_initialized()
    share = values[distributed.get_rank() :: 2] if together else values
    share = share.clone().requires_grad_()
    with global_batch_norm(model, torch.device("cpu")) if together else contextlib.nullcontext():
        model(share)
        (model(share) ** 3).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for gradient in gradients if together else ():
        distributed.all_reduce(gradient)
    return {"gradients": gradients, "input": share.grad, "buffers": list(model.buffers())}


def images_of_a_batch() -> torch.Tensor:
    return 5 + torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def take_parts(errors: list[type[Exception] | None]) -> list[Any]:
    """Train in parts: the first process leads, and may fail in one; the other does what it is told.

    Returns:
        In the first process, after each part, whether it would be waited for; in the other, the parts and what the
        model of each had as its weight.
    """
    context, found = ProcessGroupContext(device="cpu"), []
    if context.rank:
        while (task := context.await_part()) is not None:
            found.append((task[1].step, task[0].weight.item()))
        return found
    for step, error in enumerate(errors, start=1):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, 10 * step)
        part = TrainingPart(name=f"step{step}", step=step)
        with contextlib.suppress(TrainingError, ValueError), context.together(model, part):
            assert context.is_awaited
            if error is not None:
                raise error("no")
        found.append(context.is_awaited)
    context.dismiss()
    return found


def gather_parts(failing: list[int]) -> tuple[Any, bool]:
    """Gather what both processes found, some of which fail: what the first has of it, or what the other was given."""
    context = ProcessGroupContext(device="cpu")

    def find() -> str:
        if context.rank in failing:
            raise SampleError("cannot be read", f"{context.rank}.png")
        return f"found by {context.rank}"

    if context.rank:
        model, part = context.await_part()
        context.contribute(find)
        assert context.await_part() is None
        return (model.weight.item(), part), context.is_awaited
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 5)
    try:
        found = context.gather(model, ScoringPart(compares=True), find)
    except SampleError as error:
        found = str(error)
    context.dismiss()
    return found, context.is_awaited


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    position._AGREE_EVERY = 1
    expected, store = train_with_dropout(InMemory()), InMemory()
    with contextlib.suppress(Interrupted):
        train_with_dropout(store, ends_after=STEPS + 4)
    resumed = train_with_dropout(store)
    in_parts = ProcessGroupContext(device="cpu")
    in_parts.num_parts = 2
    found: dict[str, Any] = {"resumed": (resumed, expected), "in parts": train(in_parts, batch_norm=False)}
    found |= {name: train(ProcessGroupContext(device="cpu"), batch_norm=name == "norm") for name in ("norm", "plain")}
    found["start"] = [
        train(ProcessGroupContext(device="cpu"), batch_norm=False, learning_rate=1e-30, sees_start=sees)["best_epoch"]
        for sees in (True, False)
    ]
    found["parts"] = {
        "to the end": take_parts([None, None, None]),
        "refused": take_parts([None, TrainingError]),
        "lost": take_parts([ValueError]),
        "none": take_parts([]),
    }
    found["gathered"] = [gather_parts(failing) for failing in ([], [0], [1], [0, 1])]
    found["normalised"] = {momentum: normalise(images_of_a_batch(), momentum) for momentum in (0.1, None)}
    try:
        train(ProcessGroupContext(device="cpu"), batch_norm=False, learning_rate=1e30)
    except TrainingError as error:
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    gc.collect()  # a model in a reference cycle keeps the group's threads alive
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in history]


@pytest.mark.parametrize("name", ["norm", "plain"])
def test_both_processes_end_alike(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name] for found in ranks)
    assert first["best_epoch"] == second["best_epoch"] > 0
    assert timeless(first["history"]) == timeless(second["history"])
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])


@pytest.mark.parametrize("name", ["norm", "plain"])
def test_two_shares_of_a_batch_train_like_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    alone = train(LocalContext(), batch_norm=name == "norm")
    for key, value in alone["weights"].items():
        torch.testing.assert_close(ranks[0][name]["weights"][key], value, rtol=1e-4, atol=1e-5)
    for row, expected in zip(ranks[0][name]["history"], alone["history"], strict=True):
        assert math.isclose(row["train_loss"], expected["train_loss"], rel_tol=1e-4)
        assert row["validation_accuracy"] == expected["validation_accuracy"]


def test_both_processes_stay_at_a_start_that_no_epoch_is_better_than(ranks: list[dict[str, Any]]) -> None:
    """So small a learning rate changes no weight, and of equals the start is kept."""
    assert [found["start"] for found in ranks] == [[0, 0], [0, 0]]


def test_a_training_interrupted_within_an_epoch_resumes_in_both(ranks: list[dict[str, Any]]) -> None:
    """Each has random numbers of its own for dropout."""
    for resumed, expected in (found["resumed"] for found in ranks):
        assert all(torch.equal(resumed["weights"][key], value) for key, value in expected["weights"].items())
        assert resumed["losses"] == pytest.approx(expected["losses"], rel=1e-12)


def test_shares_in_parts_train_like_the_whole(ranks: list[dict[str, Any]]) -> None:
    """Gradients are exchanged once for both parts."""
    for found in ranks:
        for key, value in found["plain"]["weights"].items():
            torch.testing.assert_close(found["in parts"]["weights"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_sees_the_global_batch(ranks: list[dict[str, Any]], momentum: float | None) -> None:
    alone = normalise(images_of_a_batch(), momentum)
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(
            found["normalised"][momentum]["input"], alone["input"][rank::2], rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(found["normalised"][momentum]["gradients"], alone["gradients"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["normalised"][momentum]["buffers"], alone["buffers"])


@pytest.mark.parametrize(
    ("name", "is_awaited", "parts"),
    [
        ("to the end", [False, False, False], [(1, 10.0), (2, 20.0), (3, 30.0)]),
        ("refused", [False, False], [(1, 10.0), (2, 20.0)]),  # the other has the error, too
        ("lost", [True], [(1, 10.0)]),  # the other has not, and would wait
        ("none", [], []),
    ],
)
def test_one_process_leads_and_the_other_takes_every_part(
    ranks: list[dict[str, Any]], name: str, is_awaited: list[bool], parts: list[tuple[int, float]]
) -> None:
    assert [found["parts"][name] for found in ranks] == [is_awaited, parts]


def test_what_all_find_is_gathered_and_the_first_error_is_raised_when_all_are_done(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["gathered"] == [
        (["found by 0", "found by 1"], False),
        ("sample '0.png' cannot be read", False),
        ("sample '1.png' cannot be read", False),
        ("sample '0.png' cannot be read", False),
    ]
    assert ranks[1]["gathered"] == [((5.0, ScoringPart(compares=True)), False)] * 4


def test_all_processes_stop_when_one_diverges(ranks: list[dict[str, Any]]) -> None:
    assert ["not finite" in found["error"] for found in ranks] == [True, True]
