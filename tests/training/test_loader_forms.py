"""Fine-tuning and evaluation read batches and labels as loaders and trainers give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cleanai_ray.api import evaluate, fine_tune, prune
from cleanai_ray.errors import CalibrationError, CleanAIError, EvaluationError
from cleanai_ray.tasks.labels import classes_of, labels_of
from cleanai_ray.training.context import TrainingError

CLASSES, NUMBER, BATCH = 3, 12, 4
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(NUMBER, 2, 5, 5, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (NUMBER,), generator=GENERATOR)
PAIRS = list(zip(IMAGES.split(BATCH), LABELS.split(BATCH), strict=True))

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"pixel_values": x, "labels": y},
    "dict of labels": lambda x, y: (x, {"labels": y}),
    "dict in a dict": lambda x, y: {"x": x, "y": {"label": y}},
    "32 bits": lambda x, y: (x, y.int()),
    "bytes": lambda x, y: (x, y.to(torch.uint8)),
    "column": lambda x, y: (x, y[:, None]),
    "one-hot": lambda x, y: (x, functional.one_hot(y, CLASSES)),
    "probabilities": lambda x, y: (x, functional.one_hot(y, CLASSES).double()),
}


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def trained(batches: Any) -> nn.Module:
    model = build()
    fine_tune(model, batches, PAIRS, epochs=2, learning_rate=0.05)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_every_form_scores_and_trains_as_pairs_do(form: str) -> None:
    given = [FORMS[form](*pair) for pair in PAIRS]
    expected, found = evaluate(build(), PAIRS), evaluate(build(), given)
    assert (found.value, found.class_correct, found.class_total) == (
        expected.value,
        expected.class_correct,
        expected.class_total,
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for one, other in zip(trained(PAIRS).parameters(), trained(given).parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["taylor", "hessian"])
def test_gradients_read_every_form(form: str, method: str) -> None:
    options: dict[str, Any] = {"method": method, "ratio": 0.5}
    expected = prune(build(), IMAGES[:1], PAIRS, **options).plan.removed
    assert prune(build(), IMAGES[:1], [FORMS[form](*pair) for pair in PAIRS], **options).plan.removed == expected


def test_a_loader_trains_as_the_list_of_its_batches_in_its_order() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=NUMBER)
    for one, other in zip(trained(loader).parameters(), trained([*loader]).parameters(), strict=True):
        assert torch.equal(one, other)
    assert evaluate(build(), loader).value == evaluate(build(), PAIRS).value


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Samples without a number."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(IMAGES, LABELS, strict=True))


@pytest.mark.parametrize("batches", [DataLoader(Stream()), iter(PAIRS), IMAGES, 3])
def test_batches_without_a_number_are_refused_in_one_sentence(batches: Any) -> None:
    with pytest.raises(TrainingError, match=r"^batches is a \w+; allowed: a sequence of batches, as a list is, or a"):
        trained(batches)


def test_inputs_alone_are_refused_in_one_sentence() -> None:
    alone = DataLoader(TensorDataset(IMAGES), batch_size=BATCH)
    with pytest.raises(EvaluationError, match="a batch has no targets; needed: a pair"):
        evaluate(build(), alone)
    with pytest.raises(TrainingError, match="a batch has inputs alone; needed: targets, or a teacher"):
        trained(alone)
    with pytest.raises(CalibrationError, match="this batch has no targets"):
        prune(build(), IMAGES[:1], alone, method="taylor", ratio=0.5)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.rand(BATCH), r"labels are torch.float32 of shape \[4\]; allowed: classes \[N\], or probabilities"),
        (torch.rand(BATCH, 7), r"labels are torch.float32 of shape \[4, 7\]; .* probabilities \[N, 3\]"),
        ({"labels": LABELS[:BATCH], "other": 3}, r"labels are dict; allowed"),
    ],
)
def test_labels_of_other_forms_are_refused_in_one_sentence(labels: Any, told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        evaluate(build(), [(IMAGES[:BATCH], labels)])
    with pytest.raises(CleanAIError, match=told):
        trained([(IMAGES[:BATCH], labels)])


def test_probabilities_stay_probabilities_in_the_loss() -> None:
    mixed = torch.tensor([[0.7, 0.3, 0.0]])
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    log = logits.log_softmax(1)[0]
    loss = functional.cross_entropy(logits, labels_of(mixed, 3))
    assert loss.item() == pytest.approx(-(0.7 * log[0] + 0.3 * log[1]).item())
    assert classes_of(mixed, 3).tolist() == [0]
