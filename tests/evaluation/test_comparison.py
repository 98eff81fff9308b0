"""A pruned model beside the dense one: against loops over samples in plain Python, and merged like one pass."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.evaluation.comparison import ClassifierScorer, Comparison
from cleanai_ray.evaluation.confidence import NUM_BINS
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.evaluation.one_pass import run_over
from cleanai_ray.storage import schemas
from cleanai_ray.tasks.accuracy import Accuracy

CLASSES = 4


class Half(nn.Module):
    """Gives one half of its input back, as logits."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        return images[:, self.number]


DENSE, PRUNED = Half(0), Half(1)


def samples(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of both models [N, 2, classes], which resemble each other, and labels that they often get right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (num,), generator=generator)
    dense = 2 * torch.randn(num, CLASSES, generator=generator)
    dense[torch.arange(num), labels] += 1.5
    return torch.stack([dense, dense + torch.randn(num, CLASSES, generator=generator)], dim=1), labels


def compare(images: Tensor, labels: Tensor, batch_size: int = 7) -> tuple[Accuracy, Comparison]:
    """Scores of the second half from one pass over samples numbered 10, 13, 16 ..., beside the first half's logits."""
    numbers = 10 + 3 * torch.arange(len(labels))
    scorer = ClassifierScorer(KeptLogits(numbers=numbers.numpy(), values=images[:, 0].numpy()))
    parts = (value.split(batch_size) for value in (numbers, images, labels))
    run_over(PRUNED, zip(*parts, strict=True), scorer.add)
    found = scorer.result()
    assert found is not None
    assert found[1] is not None
    return found[0], found[1]


def compared(images: Tensor, labels: Tensor, batch_size: int = 7) -> Comparison:
    return compare(images, labels, batch_size)[1]


def probabilities(logits: Any) -> list[float]:
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


def slowly(images: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is to be found, one sample at a time."""
    found: dict[str, Any] = {"agreed": 0, "divergence": 0.0, "lost": 0, "gained": 0}
    answers: dict[str, list[tuple[float, bool]]] = {"dense": [], "pruned": []}
    for (dense_logits, logits), label in zip(images.tolist(), labels.tolist(), strict=True):
        p, q = probabilities(dense_logits), probabilities(logits)
        first, second = p.index(max(p)), q.index(max(q))
        found["agreed"] += first == second
        found["divergence"] += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        found["lost"] += first == label != second
        found["gained"] += first != label == second
        answers["dense"].append((max(p), first == label))
        answers["pruned"].append((max(q), second == label))
    return {**found, **{f"ece_{name}": calibration_error(values) for name, values in answers.items()}}


def calibration_error(answers: list[tuple[float, bool]]) -> float:
    """Guo et al. 2017, equation 3: the sum over bins of |B| / n x |accuracy(B) - confidence(B)|."""
    total = 0.0
    for number in range(NUM_BINS):
        inside = [(sure, hit) for sure, hit in answers if number / NUM_BINS < sure <= (number + 1) / NUM_BINS]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            confidence = sum(sure for sure, _ in inside) / len(inside)
            total += len(inside) / len(answers) * abs(accuracy - confidence)
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(1, 60))
def test_every_number_is_that_of_a_loop_over_samples(num: int, seed: int, batch_size: int) -> None:
    images, labels = samples(num, seed)
    found, expected = compared(images, labels, batch_size), slowly(images, labels)
    assert (found.agreed, found.lost, found.gained) == (expected["agreed"], expected["lost"], expected["gained"])
    assert found.divergence == pytest.approx(expected["divergence"], rel=1e-9)
    assert found.confidence_dense.expected_error == pytest.approx(expected["ece_dense"], rel=1e-9)
    assert found.confidence.expected_error == pytest.approx(expected["ece_pruned"], rel=1e-9)
    assert (found.agreement, found.mean_divergence) == (found.agreed / num, found.divergence / num)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 10**6))
def test_the_sum_over_shards_is_the_comparison_on_all_samples_in_any_order(sizes: list[int], seed: int) -> None:
    images, labels = samples(sum(sizes), seed)
    shards = [compared(*shard) for shard in zip(images.split(sizes), labels.split(sizes), strict=True)]
    total, backwards = shards[0], shards[-1]
    for shard in shards[1:]:
        total = total + shard
    for shard in reversed(shards[:-1]):
        backwards = backwards + shard
    whole = compared(images, labels)
    for other in (total, backwards):
        assert_same(other, whole)


def assert_same(one: Comparison, other: Comparison) -> None:
    for mine, its in zip(astuple(one), astuple(other), strict=True):
        if isinstance(mine, tuple) and mine and isinstance(mine[0], tuple):  # confidence: counts, hits and a real sum
            assert mine[:2] == its[:2]
            assert mine[2] == pytest.approx(its[2], rel=1e-12)
        else:
            assert mine == pytest.approx(its, rel=1e-12)


def test_the_same_pass_scores_the_pruned_model_as_evaluate_does_bit_by_bit() -> None:
    images, labels = samples(40, seed=2)
    batches = list(zip(images.split(9), labels.split(9), strict=True))
    accuracy, found = compare(images, labels, 9)
    assert accuracy == evaluate(PRUNED, batches)
    assert compare(images, labels, 9) == (accuracy, found)
    dense = evaluate(DENSE, batches)
    assert found.class_correct_dense == dense.class_correct
    assert found.class_total == dense.class_total
    assert sum(found.class_correct) - sum(found.class_correct_dense) == found.gained - found.lost


def test_labels_are_not_read_for_agreement_and_divergence() -> None:
    images, labels = samples(40, seed=3)
    one, other = compared(images, labels), compared(images, (labels + 1) % CLASSES)
    assert (one.agreed, one.divergence) == (other.agreed, other.divergence)
    assert one.class_correct != other.class_correct


def test_a_model_beside_itself() -> None:
    images, labels = samples(40, seed=4)
    found = compared(images[:, [0, 0]], labels)
    assert (found.agreement, found.divergence, found.lost, found.gained) == (1.0, 0.0, 0, 0)
    assert found.confidence == found.confidence_dense


def test_the_class_that_lost_most_comes_first_and_classes_without_samples_do_not() -> None:
    right, wrong = 5.0, -5.0

    def image(label: int, dense_right: bool, pruned_right: bool) -> Tensor:
        logits = torch.zeros(2, CLASSES)
        logits[0, label], logits[1, label] = right if dense_right else wrong, right if pruned_right else wrong
        return logits

    cases = [(0, True, True), (0, True, True), (1, True, False), (1, False, False), (3, True, False), (3, False, True)]
    images = torch.stack([image(*case) for case in cases])
    rows = list(compared(images, torch.tensor([case[0] for case in cases])).class_rows())
    assert rows == [
        {"label": 1, "num_evaluated": 2, "accuracy_dense": 0.5, "accuracy": 0.0, "change": -0.5},
        {"label": 0, "num_evaluated": 2, "accuracy_dense": 1.0, "accuracy": 1.0, "change": 0.0},
        {"label": 3, "num_evaluated": 2, "accuracy_dense": 0.5, "accuracy": 0.5, "change": 0.0},
    ]
    table = schemas.to_table([{"trial_id": "t", **row} for row in rows], schemas.CLASSES)
    assert table.schema.names == ["trial_id", *rows[0]]


def test_outputs_that_are_no_numbers_are_neither_an_error_nor_hidden() -> None:
    images, labels = samples(6, seed=5)
    images[2, 1] = math.nan
    found = compared(images, labels)
    assert math.isnan(found.divergence)
    assert math.isnan(found.confidence.expected_error)
    assert found.confidence_dense.expected_error == pytest.approx(slowly(images[:, [0, 0]], labels)["ece_dense"])


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    assert ClassifierScorer().result() is None
    dense = KeptLogits(numbers=np.arange(3), values=np.zeros((3, 5), dtype=np.float32))
    scorer = ClassifierScorer(dense)
    with pytest.raises(EvaluationError, match=r"dense model.*5 classes.*pruned.*4.*allowed: the same number"):
        scorer.add(torch.arange(3), torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
    narrow = ClassifierScorer(KeptLogits(numbers=np.arange(3), values=np.zeros((3, 2), dtype=np.float32)))
    with pytest.raises(KeyError, match="no logits of sample 3"):
        narrow.add(torch.tensor([2, 3]), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))
    narrow.add(torch.tensor([2, 0]), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))
    found = narrow.result()
    assert found is not None
    assert found[1] is not None
    with pytest.raises(ValueError, match="zip"):
        compared(*samples(5, seed=0)) + found[1]
