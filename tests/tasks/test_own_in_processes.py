"""A metric of the user's own by several processes: that of all samples, or refused in a sentence."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import own_scores
import pytest
import small_nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import EvaluationError, StudyError
from cleanai_ray.evaluation.scoring import score
from cleanai_ray.registry import can_merge
from cleanai_ray.tasks import Task
from cleanai_ray.tasks import own as own_tasks
from cleanai_ray.tasks.own import task_with
from cleanai_ray.tasks.score import NoLabelError, TaskScore
from cleanai_ray.training.context import LocalContext, TrainingError

METRICS = ["balanced", "Merging", "library"]
Batch = tuple[Tensor, Tensor]


def task_of(metric: str) -> Task:
    return task_with("classification", metric=f"own_scores:{metric}")


def batches(sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in sizes:
        targets = torch.randint(0, 3, (size,), generator=generator)
        found.append((torch.randn(size, 3, generator=generator) + 2 * torch.eye(3)[targets], targets))
    return found


class Exchange:
    """What `of_all_processes` does, among threads: everybody gets copies of what all have, by rank."""

    def __init__(self, number: int) -> None:
        self._barrier, self._shares = threading.Barrier(number), [b""] * number
        self._rank = threading.local()

    def __call__(self, own: Any) -> list[Any]:
        self._shares[self._rank.value] = pickle.dumps(own)
        self._barrier.wait(timeout=30)
        return [pickle.loads(share) for share in self._shares]

    def scored(self, rank: int, task: Task, own: list[Batch]) -> TaskScore:
        self._rank.value = rank
        scorer = task.new_scorer()
        for batch in own:
            scorer.add(*batch)
        found = scorer.result(lambda tensor: tensor)
        assert isinstance(found, TaskScore)
        return found


def by_processes(task: Task, shares: list[list[Batch]]) -> list[TaskScore]:
    """Score shares of the batches, each by a process."""
    exchange = Exchange(len(shares))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(shares)) as pool:
        patch.setattr(own_tasks, "of_all_processes", exchange)
        tasks = [pool.submit(exchange.scored, rank, task, own) for rank, own in enumerate(shares)]
        return [each.result() for each in tasks]


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15)
@given(ranks=st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_the_score_is_that_of_all_samples_however_they_are_shared_out(metric: str, ranks: list[int]) -> None:
    """Some processes have no batch; the sizes differ, so that a mean over processes would be another number."""
    if metric == "library":
        pytest.importorskip("torchmetrics")
    task, every = task_of(metric), batches([2, 7, 3, 9])
    alone = score(nn.Identity(), every, task=task)
    logits, targets = (torch.cat(parts) for parts in zip(*every, strict=True))
    assert alone.value == pytest.approx(own_scores.balanced(logits, targets), rel=1e-5)
    shares = [[batch for batch, owner in zip(every, ranks, strict=True) if owner == rank] for rank in range(3)]
    for found in by_processes(task, shares):
        assert found.value == pytest.approx(alone.value, rel=1e-5)
        assert found.loss == pytest.approx(alone.loss, rel=1e-6)
        assert found.num_samples == 21


def test_without_any_sample_there_is_no_score() -> None:
    with pytest.raises(EvaluationError, match="0 batches"):
        by_processes(task_of("Merging"), [[], []])


def test_a_share_without_a_label_has_no_loss_and_its_samples_count() -> None:
    """All pixels of one process are ignored: cross-entropy is that of the other's, and the metric is of both."""
    task = task_with("segmentation", metric="own_scores:share_of_zeros")
    zeros, pixels = torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255)
    (first, second) = by_processes(task, [[(zeros, pixels)], [(zeros, pixels * 0)]])
    assert first == second
    assert (first.num_samples, first.value, first.loss) == (2, 0.5, pytest.approx(math.log(2)))
    with pytest.raises(NoLabelError, match="none of 2 samples has a label"):
        by_processes(task, [[(zeros, pixels)], [(zeros, pixels)]])


def test_an_error_of_all_processes_is_told_from_that_of_one() -> None:
    """Who waits for the others may only be left alone with an error that these have, too."""
    every = batches([2])
    for metric, is_shared in (("Unmergeable", True), ("failing", True), ("Failing", False)):
        with pytest.raises(EvaluationError, match="failed with ValueError") as caught:
            by_processes(task_of(metric), [every, every])
        assert caught.value.in_all_processes == is_shared


def test_a_merge_that_fails_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"'own_scores:Unmergeable' failed with ValueError: no such thing"):
        by_processes(task_of("Unmergeable"), [batches([2]), batches([3])])


def all_alone(work: Callable[[], Any]) -> None:
    with pytest.raises((EvaluationError, TrainingError), match=r"allowed for task.metric 'own_scores:Counted', whose "):
        work()


def test_what_cannot_be_merged_is_refused_in_a_sentence() -> None:
    task, pairs = task_of("Counted"), batches([3])
    assert score(nn.Identity(), pairs, task=task).num_samples == 3
    all_alone(lambda: score(nn.Identity(), pairs, task=task, all_reduce=lambda tensor: tensor))
    several = LocalContext()
    several.world_size = 2
    net, data = small_nets.build("plain"), small_nets.batches()
    all_alone(lambda: cleanai.fine_tune(net, data, data, task=task, epochs=1, context=several))


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("synchronises", [True, False])
@pytest.mark.parametrize("merges", [True, False])
def test_a_metric_of_torchmetrics_can_merge_where_it_does(said: bool | None, synchronises: bool, merges: bool) -> None:
    pytest.importorskip("torchmetrics")
    one = own_scores.derived(said, synchronises, merges)
    other, every = copy.deepcopy(one), batches([4, 5])
    for metric, batch in zip((one, other), every, strict=True):
        metric.update(*batch)
    if can_merge(one):
        one.merge_state(other)
        assert one.compute() == sum(int((logits.argmax(1) == targets).sum()) for logits, targets in every)
    else:
        with pytest.raises(RuntimeError, match="not supported"):
            one.merge_state(other)


@pytest.mark.parametrize(("reduction", "merges"), [("sum", True), ("mean", True), ("cat", True), (torch.mean, False)])
def test_states_that_a_function_of_its_own_reduces_are_not_merged(reduction: Any, merges: bool) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    metric.add_state("more", [] if reduction == "cat" else torch.tensor(0.0), dist_reduce_fx=reduction)
    assert can_merge(metric) == merges


@pytest.mark.parametrize("owners", [(0, 0, 1, 2), (0, 1, 1, 1), (2, 0, 2, 2)])
def test_means_over_updates_are_weighted_by_the_updates_of_each_process(owners: tuple[int, ...]) -> None:
    """By hand: a tenth of the mean over the four batches of their numbers of samples, 2, 7, 3 and 9."""
    pytest.importorskip("torchmetrics")
    every = batches([2, 7, 3, 9])
    shares = [[batch for batch, owner in zip(every, owners, strict=True) if owner == rank] for rank in range(3)]
    for found in by_processes(task_of("batch_size"), shares):
        assert found.value == pytest.approx(21 / 40)


def test_what_torchmetrics_does_not_merge_is_refused_before_anything_is_trained() -> None:
    pytest.importorskip("torchmetrics")
    metric = "own_scores:plain_library"
    study = {
        "task": {"metric": metric},
        "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
        "data": {"name": "digits"},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    }
    allowed = f"allowed for task.metric '{metric}', whose objects have no merge_state that can put them together: 1"
    with pytest.raises(StudyError, match=f"finetune.num_workers is 2; {allowed}"):
        parse_study({**study, "finetune": {"epochs": 1, "num_workers": 2}})
    assert parse_study({**study, "finetune": {"epochs": 1, "num_workers": "auto"}}).most_workers_per_trial == 1
    assert not task_of("plain_library").in_processes


def test_torchmetrics_does_not_wait_for_processes_that_do_not_score() -> None:
    """Of several processes, one scores the trials of a study: its metric must not look for the others."""
    pytest.importorskip("torchmetrics")
    scorer = task_of("library").new_scorer()
    collector = scorer._collector  # type: ignore[attr-defined]
    collector.distributed_available_fn = lambda: True
    collector.dist_sync_fn = lambda *_, **__: pytest.fail("it asked the other processes")
    for batch in batches([4, 5]):
        scorer.add(*batch)
    assert scorer.result().num_samples == 9
