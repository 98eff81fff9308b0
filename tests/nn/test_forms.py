"""Forms of modules are the same for those that differ in weights alone; questions are asked once for each form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.nn import open_attention as opening
from cleanai_ray.nn import open_layers
from cleanai_ray.nn.forms import KnownForms, form_of


class Scaled(nn.Conv2d):
    """A convolution with an attribute of its own."""

    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__(2, 4, 1)
        self.scale = scale


def with_hook() -> nn.Module:
    module = Scaled()
    module.register_forward_pre_hook(lambda *_: None)
    return module


def with_shared_weights() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


def test_modules_have_one_form_if_they_differ_in_weights_alone() -> None:
    block = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1)))
    same = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1)))
    assert form_of(block) == form_of(same.eval().requires_grad_(False)) is not None
    others = [
        nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.2))),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1))),
        nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.AlphaDropout(0.1))),
        nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1))),
    ]
    assert all(form_of(other) not in (None, form_of(block)) for other in others)
    assert form_of(Scaled(1)) != form_of(Scaled(True)) != form_of(Scaled([1]))


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(2), with_hook(), with_shared_weights(), nn.LazyLinear(2), nn.Linear(2, 2, device="meta"),
     Scaled(torch.ones(1)), Scaled([1, None, object()])],
    ids=["buffers", "hook", "shared", "lazy", "meta", "tensor", "object"],
)  # fmt: skip
def test_nothing_is_known_of_modules_whose_form_may_not_be_all(module: nn.Module) -> None:
    asked: list[nn.Module] = []
    known = KnownForms(lambda each: bool(asked.append(each)))
    assert form_of(module) is None
    assert [known(module), known(module)] == [False, False]
    assert asked == [module, module]


def test_a_question_is_asked_once_for_a_form_and_again_after_an_error() -> None:
    asked: list[nn.Module] = []

    def question(module: nn.Module) -> bool:
        asked.append(module)
        if len(asked) == 1:
            raise RuntimeError
        return True

    known = KnownForms(question)
    with pytest.raises(RuntimeError):
        known(Scaled())
    second = Scaled()
    assert [known(second), known(Scaled()), known(Scaled(2.0))] == [True, True, True]
    assert asked[1] is second
    assert len(asked) == 3


class Standardised(nn.Conv2d):
    """A convolution whose weight has no mean, which a plain one stands for."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Attention(nn.Module):
    """Attention of the form that timm has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 2, 2**-0.5
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("build", "home", "trial"),
    [(lambda: Standardised(2, 3, 3), open_layers, "_run"), (Attention, opening, "_open_packed")],
)
def test_layers_of_one_form_are_tried_once(build: Any, home: Any, trial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    own = getattr(home, trial)
    monkeypatch.setattr(home, trial, lambda *given: calls.append(given) or own(*given))
    one = build()
    opening.open_attention(one)
    first = len(calls)
    other = build()
    opened = opening.open_attention(other)
    assert (first > 1, len(calls) - first) == (True, 1)  # The second time it is opened, and not tried.
    inputs = torch.randn(2, 2, 5, 5) if isinstance(other, nn.Conv2d) else torch.randn(2, 3, 4)
    assert opened is not other
    torch.testing.assert_close(opened(inputs), other(inputs))
