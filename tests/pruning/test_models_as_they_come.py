"""Models with outputs, layouts and weights of other forms: handled, or refused in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils import prune as masks

from cleanai_ray.api import evaluate, fine_tune, load, prune, save
from cleanai_ray.errors import PruningError
from cleanai_ray.nn.calls import main_output

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 3


def build() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
    pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(first, nn.ReLU(), second, *pooled, nn.Linear(24, 3)).eval()


class Returning(nn.Module):
    """A network whose output is put into something."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = build(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple with None": lambda y: (y, None),
    "None first": lambda y: (None, y),
    "dict": lambda y: {"logits": y},
    "dict with a loss": lambda y: {"loss": None, "features": y[:, :2], "logits": y},
    "nested": lambda y: ((y,), None),
}


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_a_model_is_pruned_repaired_scored_and_trained_whatever_holds_its_output(form: str, method: str) -> None:
    model, pairs = Returning(OUTPUTS[form]).eval(), [(IMAGES, LABELS)]
    options: dict[str, Any] = {"method": method, "ratio": 0.5, "repair": True}
    result = prune(model, IMAGES[:1], pairs, **options)
    plain = prune(Returning(lambda y: y).eval(), IMAGES[:1], pairs, **options)
    assert result.plan.removed == plain.plan.removed
    torch.testing.assert_close(main_output(result.model(IMAGES)), plain.model(IMAGES))
    assert evaluate(result.model, pairs).value == evaluate(plain.model, pairs).value
    fine_tune(result.model, pairs, pairs, epochs=1, learning_rate=0.01)
    fine_tune(plain.model, pairs, pairs, epochs=1, learning_rate=0.01)
    torch.testing.assert_close(main_output(result.model(IMAGES)), plain.model(IMAGES))


def test_the_output_that_counts() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert main_output(one) is one
    assert main_output({"loss": one, "logits": two}) is two
    assert main_output({"first": [None, (one,)], "logits": None, "second": two}) is one
    assert main_output((None, {})) == (None, {})


@pytest.mark.parametrize("is_last", [True, False])
def test_a_pruned_model_has_the_layout_of_the_dense_one(is_last: bool) -> None:
    layout = torch.channels_last if is_last else torch.contiguous_format
    model = build().to(memory_format=layout)  # type: ignore[call-overload]
    pruned = prune(model, IMAGES[:1].to(memory_format=layout), method="magnitude", ratio=0.5).model
    for layer in (pruned[0], pruned[2]):  # type: ignore[index]
        assert layer.weight.is_contiguous(memory_format=torch.channels_last) == is_last
        assert layer.weight.is_contiguous() == (not is_last)


@pytest.mark.parametrize("is_trained", [True, False])
def test_layers_that_share_a_weight_on_which_all_depends_get_a_copy_each(is_trained: bool, tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12)
            self.head, self.two.weight = nn.Linear(12, 3), self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(x)))))))

    model, x = Shared().eval(), torch.randn(5, 8)
    model.one.weight.requires_grad_(is_trained)
    result = prune(model, x, method="magnitude", ratio=0.5)
    told = "'one' and 'two' share a weight, on which every group depends: each gets a copy of its own"
    assert any(warning.startswith(told) for warning in result.plan.warnings)
    assert model.one.weight is model.two.weight
    gone = {name: list(channels) for name, channels in result.plan.removed.items()}

    def silent(values: Tensor, group: str) -> Tensor:
        return values.index_fill(1, torch.tensor(gone[group]), 0.0)

    hidden = silent(torch.relu(model.stem(x)), "stem")
    hidden = silent(torch.relu(model.one(hidden)), "one")
    expected = model.head(silent(torch.relu(model.two(hidden)), "two"))
    torch.testing.assert_close(result.model(x), expected)
    pruned: Any = result.model
    assert pruned.one.weight.requires_grad == pruned.two.weight.requires_grad == is_trained
    save(result, tmp_path)
    assert torch.equal(load(tmp_path, Shared)(x), result.model(x))
    again = prune(result.model, x, method="magnitude", ratio=0.5)
    save(again, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", Shared)(x), again.model(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda layer: masks.l1_unstructured(layer, "weight", 0.3), r"a mask of torch.nn.utils.prune; needed first: t"),
        (weight_norm, r"torch.nn.utils.weight_norm; needed first: torch.nn.utils.remove_weight_norm"),
        (spectral_norm, r"torch.nn.utils.spectral_norm; needed first: torch.nn.utils.remove_spectral_norm"),
    ],
)
def test_weights_that_hooks_compute_are_refused_by_name(change: Callable[[nn.Module], Any], told: str) -> None:
    model = build()
    change(model[2])
    with pytest.raises(PruningError, match=rf"^layer '2' computes its weight by {told}"):
        prune(model, IMAGES[:1], method="magnitude", ratio=0.5)


def test_layers_without_a_shape_are_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with pytest.raises(PruningError, match=r"^layer '0' has no shape yet; run the model once on an input"):
        prune(model, IMAGES[:1], method="magnitude", ratio=0.5)


@pytest.mark.filterwarnings("ignore:.*non-leaf Tensor.*:UserWarning")
@pytest.mark.parametrize(
    "change", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_a_parametrised_layer_keeps_its_width_alone(change: Callable[[nn.Module], Any]) -> None:
    model = build()
    change(model[2])
    model.insert(0, nn.Conv2d(3, 3, 1))
    with pytest.raises(PruningError, match=r"layer '3' keeps its width: its weight is parametrised \(weight\)"):
        prune(model, IMAGES[:1], method="magnitude", ratio=0.5, ignored_layers=["0", "1"])
