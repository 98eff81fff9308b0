"""A pruned model that was trained by something else is saved with its plan; another plan is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small_nets import NETS, batches, build, example, tiny_vit
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import ArtifactError
from cleanai_ray.pruning.plan_fit import unwrapped
from cleanai_ray.registry import MODELS


def train(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """A loop of one's own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.arange(len(images)) % classes
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
    model.eval()


def same(model: nn.Module, other: nn.Module, images: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(model.eval()(images), other.eval()(images))


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_a_model_trained_by_a_plain_loop_comes_back_bit_by_bit(net: str, repair: bool, tmp_path: Path) -> None:
    result = cleanai.prune(build(net), example(), batches(), method="wanda", ratio=0.5, repair=repair)
    model = result.model
    train(model, example(6), 3)
    cleanai.save(model, tmp_path / "small", plan=result.plan)
    loaded = cleanai.load(tmp_path / "small", lambda: build(net, seed=3))
    assert same(loaded, model, example(6))
    assert not same(cleanai.prune(build(net), example(), batches(), method="wanda", ratio=0.5).model, model, example(6))


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: MODELS.get("resnet20")().build(num_classes=5, input_shape=(3, 16, 16)),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),  # splits the output of layers in two
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5),
    "vit": tiny_vit,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_kind_of_architecture_fits_its_own_plan(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = FACTORIES[name]().eval(), example(2, size=16, channels=3)
    result = cleanai.prune(model, images, [images], method="magnitude", mode="global", ratio=0.4)
    assert result.plan.removed
    cleanai.save(result.model, tmp_path, plan=result.plan)
    assert same(cleanai.load(tmp_path, FACTORIES[name]), result.model, images)


def test_removed_blocks_are_part_of_the_plan(tmp_path: Path) -> None:
    model, data = build("residual"), batches()
    blocks = [cleanai.measure_blocks(model, example(), data)[0].name]
    for options in ({}, {"ratio": 0.4, "method": "magnitude"}):
        result = cleanai.prune(model, example(), data, remove_blocks=blocks, **options)
        cleanai.save(result.model, tmp_path, plan=result.plan)
        assert same(cleanai.load(tmp_path, lambda: build("residual")), result.model, example())


def test_the_plan_may_be_where_a_save_wrote_it(tmp_path: Path) -> None:
    result = cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.4)
    cleanai.save(result, tmp_path / "small")
    model = cleanai.load(tmp_path / "small", lambda: build("residual"))  # in another process, say
    train(model, example(6), 3)
    cleanai.save(model, tmp_path / "tuned", plan=tmp_path / "small")
    assert same(cleanai.load(tmp_path / "tuned", lambda: build("residual")), model, example(6))


def test_wrappers_of_torch_are_taken_off(tmp_path: Path) -> None:
    result = cleanai.prune(build("plain"), example(), method="magnitude", ratio=0.4)
    for wrapped in (
        torch.compile(result.model),
        nn.DataParallel(result.model),
        nn.DataParallel(torch.compile(result.model)),
    ):
        assert unwrapped(wrapped) is result.model
        cleanai.save(wrapped, tmp_path, plan=result.plan)
        assert same(cleanai.load(tmp_path, lambda: build("plain")), result.model, example())


class Module(nn.Module):
    """As Lightning modules are: the network is an attribute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def refusal(model: Any, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(ArtifactError) as error:
        cleanai.save(model, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_that_is_not_the_plan_s_is_refused_in_one_sentence(tmp_path: Path) -> None:
    result = cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.4)
    plan, model = result.plan, result.model
    dense, other = build("residual"), build("depthwise")
    narrower = cleanai.prune(dense, example(), method="magnitude", ratio=0.7)
    number = sum(value.numel() for value in model.parameters())

    assert "channels, and the plan leaves" in refusal(dense, tmp_path, plan=plan)
    said = refusal(other, tmp_path, plan=plan)
    assert "the plan of a Residual is not that of this Depthwise" in said
    assert "which has no layer 'head'" in said
    assert "channels, and the plan leaves" in refusal(narrower.model, tmp_path, plan=plan)
    said = refusal(Module(model), tmp_path, plan=plan)
    assert "pass the module 'network' in it" in said
    model.fc = nn.Linear(model.fc.in_features, 30)
    said = refusal(model, tmp_path, plan=plan)
    assert f"its plan leaves {number:,} of" in said


def test_other_arguments_are_refused_in_one_sentence(tmp_path: Path) -> None:
    result = cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.4)
    other = cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.7)
    assert "a Residual without its plan; needed: plan=result.plan" in refusal(result.model, tmp_path)
    assert "another plan; allowed: the result alone" in refusal(result, tmp_path, plan=other.plan)
    assert "model is a dict" in refusal(dict(result.model.state_dict()), tmp_path, plan=result.plan)
    assert "plan.json" in refusal(result.model, tmp_path, plan=tmp_path / "nowhere")
    cleanai.save(result, tmp_path / "small", plan=result.plan)
