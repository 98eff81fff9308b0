from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.nn.hooks import count_hooks, require_no_hooks


def digits_classifier() -> tuple[nn.Module, Tensor, Tensor, LogisticRegression]:
    """A logistic regression of scikit-learn's, and the same as a torch module."""
    data = load_digits()
    reference = LogisticRegression(C=1e-3, max_iter=200).fit(data.data[:300], data.target[:300])
    linear = nn.Linear(64, 10).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(reference.coef_))
        linear.bias.copy_(torch.from_numpy(reference.intercept_))
    return linear, torch.from_numpy(data.data[300:]), torch.from_numpy(data.target[300:]), reference


def test_agrees_with_scikit_learn_on_batches_of_unequal_size() -> None:
    model, images, labels, reference = digits_classifier()
    found = evaluate(model, zip(images.split(400), labels.split(400), strict=True))
    probabilities = reference.predict_proba(images.numpy())
    truth = labels.numpy()
    assert found.num_samples == 1497
    assert found.accuracy == pytest.approx(accuracy_score(truth, probabilities.argmax(1)))
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, probabilities, k=5))
    assert found.loss == pytest.approx(log_loss(truth, probabilities), rel=1e-5)
    assert found.accuracy < found.top5 < 1.0
    assert found.class_total == tuple((truth == digit).sum() for digit in range(10))
    right = truth[probabilities.argmax(1) == truth]
    assert found.class_correct == tuple((right == digit).sum() for digit in range(10))


class Echo(nn.Module):
    """Gives its input back, as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_values_by_hand_with_fewer_than_five_classes() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [math.log(3.0), 0.0]])
    found = evaluate(Echo(), [(logits, torch.tensor([1, 0, 1]))])
    # Probabilities of the labels: 3/4, 1/2 (the first of equals is the answer), 1/4.
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.top5 == 1.0
    assert found.loss == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3, rel=1e-6)
    assert (found.class_correct, found.class_total) == ((1, 1), (1, 2))


def test_top_five_is_never_below_top_one_when_all_outputs_are_equal() -> None:
    found = evaluate(Echo(), [(torch.zeros(8, 10), torch.zeros(8, dtype=torch.long))])
    assert (found.accuracy, found.top5) == (1.0, 1.0)


def test_every_module_is_put_back_in_its_own_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)))
    model.train()
    model[1][0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    batch = (torch.randn(64, 2), torch.zeros(64, dtype=torch.long))
    assert evaluate(model, [batch]) == evaluate(model, [batch])  # no dropout while it is evaluated
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))])
    assert all(module.training for module in model.modules())


def test_no_batches_are_refused() -> None:
    with pytest.raises(EvaluationError, match="0 batches"):
        evaluate(nn.Linear(2, 2), [])


def test_an_output_that_is_not_logits_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"\(4, 1, 2, 2\)"):
        evaluate(nn.Conv2d(1, 1, 1), [(torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.long))])


def test_images_can_be_trained_on_after_an_evaluation() -> None:
    """A data set may keep tensors that it first made while they were evaluated."""
    kept: list[tuple[Tensor, Tensor]] = []

    def batches() -> list[tuple[Tensor, Tensor]]:
        if not kept:
            kept.append((torch.randn(8, 2) * 1.0, torch.zeros(8, dtype=torch.long)))
        return kept

    model = nn.Linear(2, 2)
    evaluate(model, (batch for _ in range(1) for batch in batches()))
    nn.functional.cross_entropy(model(kept[0][0]), kept[0][1]).backward()
    assert model.weight.grad is not None


REGISTRATIONS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward_pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward_pre": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", sorted(REGISTRATIONS))
def test_every_kind_of_hook_is_counted_and_refused(kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert count_hooks(model) == 0
    handle = REGISTRATIONS[kind](model[1][0])
    assert count_hooks(model) == 1
    with pytest.raises(EvaluationError, match=r"1 hook.*'1\.0'"):
        evaluate(model, [(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))])
    handle.remove()  # type: ignore[attr-defined]
    require_no_hooks(model)


@pytest.mark.filterwarnings("ignore")
def test_weight_norm_is_part_of_the_model() -> None:
    model = nn.utils.weight_norm(nn.Linear(2, 2))
    assert len(model._forward_pre_hooks) == 1
    assert count_hooks(model) == 0
