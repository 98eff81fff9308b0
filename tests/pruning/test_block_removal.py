"""Whole blocks that are removed: what is left computes what the dense model does with the branches at their means."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import batches, build, example, randomise, tiny_vit
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from cleanai_ray import api
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import ArtifactError, CalibrationError, PruningError
from cleanai_ray.graph.block import Block
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.block_removal import plan_blocks
from cleanai_ray.pruning.plan import BlockPlan, PruningPlan
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.registry import FORMATS

IMAGES = batches(size=12, sizes=(5, 3))
EXAMPLE = example(size=12)
BLOCKS = ["layer1.1", "layer1.2", "layer3.2"]


def resnet() -> Any:
    torch.manual_seed(0)
    return randomise(ResNetCifar(3, 2, (4, 6, 8)))


def mobilenet() -> Any:
    """Three inverted residuals of which the last two have a shortcut, between a stem and a head."""
    torch.manual_seed(0)
    model = MobileNetV2(num_classes=3, inverted_residual_setting=[[2, 8, 3, 1]], round_nearest=4)
    model.features[0][0] = nn.Conv2d(2, model.features[0][0].out_channels, 3, padding=1, bias=False)
    return randomise(model)


@torch.no_grad()
def emptied(model: nn.Module) -> nn.Module:
    """The architecture alone, as a factory gives it: with weights that are not the model's."""
    for parameter in model.parameters():
        parameter.zero_()
    return model


class Held(nn.Module):
    """A basic block whose branch gives its mean: the slow twin of a removed block."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.mean[:, None, None])


@torch.no_grad()
def mean_of_branch(model: Any, name: str) -> Tensor:
    """The mean of what a basic block adds to its input, by running the model step by step over all images at once."""
    x = torch.relu(model.bn1(model.conv1(torch.cat([images for images, _ in IMAGES]))))
    for path in (f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3)):
        block = model.get_submodule(path)
        if path == name:
            return block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))).mean(dim=(0, 2, 3))
        x = block(x)
    raise AssertionError(name)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor | None = None) -> Tensor:
    return copy.deepcopy(model).eval()(torch.cat([images for images, _ in IMAGES]) if images is None else images)


def test_what_is_left_is_the_dense_model_with_the_branches_at_their_means() -> None:
    model = resnet()
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    for name in BLOCKS:
        stage, place = name.split(".")
        getattr(twin, stage)[int(place)] = Held(mean_of_branch(model, name))
    result = api.prune(model, EXAMPLE, IMAGES, remove_blocks=BLOCKS)
    torch.testing.assert_close(outputs(result.model), outputs(twin))
    assert not torch.allclose(outputs(result.model), outputs(model), atol=1e-3)
    assert [block.name for block in result.plan.blocks] == BLOCKS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_order_of_the_names_does_not_matter_and_a_generator_is_read_once() -> None:
    model = resnet()
    one = api.prune(model, EXAMPLE, IMAGES, remove_blocks=BLOCKS)
    two = api.prune(model, EXAMPLE, (batch for batch in IMAGES), remove_blocks=BLOCKS[::-1], repair=True)
    assert one.plan.blocks == two.plan.blocks
    assert two.model.state_dict().keys() == one.model.state_dict().keys()


def test_means_are_folded_into_the_layer_before() -> None:
    """Both blocks' means go into the batch-norm that ends the first block, whose output is the stream."""
    model = mobilenet()
    names = ["features.2", "features.3"]
    result = api.prune(model, EXAMPLE, IMAGES, remove_blocks=names)
    means = [torch.tensor(block.mean) for block in result.plan.blocks]
    assert min(float(mean.abs().max()) for mean in means) > 0.01
    twin = copy.deepcopy(model)
    for name, mean in zip(names, means, strict=True):
        norm = twin.get_submodule(f"{name}.conv.3")  # Without its weight, a batch-norm gives its bias.
        norm.weight.data.zero_()
        norm.bias.data.copy_(mean)
    torch.testing.assert_close(outputs(result.model), outputs(twin))
    added = result.model.features[1].conv[3].bias - model.features[1].conv[3].bias
    torch.testing.assert_close(added, means[0] + means[1])
    assert not [name for name in result.model.state_dict() if name.endswith("mean") and "running" not in name]


def test_one_block_alone_is_folded_too_and_the_other_stays() -> None:
    model = mobilenet()
    result = api.prune(model, EXAMPLE, IMAGES, remove_blocks=["features.3"])
    (block,) = result.plan.blocks
    added = result.model.features[2].conv[3].bias - model.features[2].conv[3].bias
    torch.testing.assert_close(added, torch.tensor(block.mean))


@pytest.mark.parametrize("kind", ["blocks alone", "narrowed", "repaired"])
@pytest.mark.parametrize("net", [resnet, mobilenet, tiny_vit])
def test_a_model_without_blocks_is_saved_and_loaded(net: Any, kind: str, tmp_path: Path) -> None:
    model = net()
    images = batches(size=16, channels=3, sizes=(6, 4)) if net is tiny_vit else IMAGES
    inputs = example(size=16, channels=3) if net is tiny_vit else EXAMPLE
    names = {
        resnet: BLOCKS,
        mobilenet: ["features.2"],
        tiny_vit: ["encoder.layers.encoder_layer_0.mlp", "encoder.layers.encoder_layer_1.self_attention"],
    }[net]
    more: dict[str, Any] = {} if kind == "blocks alone" else {"method": "magnitude", "ratio": 0.3}
    ignored = ["heads"] if net is tiny_vit else []
    result = api.prune(
        model, inputs, images, remove_blocks=names, ignored_layers=ignored, repair=kind == "repaired", **more
    )
    assert bool(result.plan.removed) == (kind != "blocks alone")
    api.save(result, tmp_path)
    loaded = api.load(tmp_path, lambda: emptied(net()))
    assert torch.equal(outputs(loaded, images[0][0]), outputs(result.model, images[0][0]))
    plan = PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert plan.blocks == result.plan.blocks
    if kind != "repaired":
        applied = api.apply_plan(model, plan).state_dict()
        assert applied.keys() == result.model.state_dict().keys()
        assert all(torch.equal(value, applied[name]) for name, value in result.model.state_dict().items())
    result.model.train()(images[0][0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())


def test_a_budget_counts_what_the_blocks_save() -> None:
    model = resnet()
    result = api.prune(model, EXAMPLE, IMAGES, remove_blocks=BLOCKS, method="magnitude", budget={"macs": 0.4})
    achieved, dense = result.plan.achieved, measure_complexity(model, EXAMPLE)
    assert (achieved["macs_dense"], achieved["params_dense"]) == (dense.macs, dense.params)
    assert 0.38 * dense.macs <= measure_complexity(result.model, EXAMPLE).macs == achieved["macs"] <= 0.4 * dense.macs
    # A 3x3 convolution from 4 to 4 channels on 12 x 12 positions, twice.
    assert result.plan.blocks[0].macs == 2 * 4 * 4 * 9 * 12 * 12


def test_blocks_alone_can_meet_a_budget() -> None:
    result = api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS, method="magnitude", budget={"macs": 0.95})
    assert not result.plan.removed
    assert result.plan.warnings == ("step 1 of 1 removed nothing: the blocks that were removed meet the budget",)


def test_rows_of_layers_say_that_a_layer_is_gone() -> None:
    result = api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS, method="magnitude", ratio=0.3)
    rows = {row["layer"]: row for row in result.layers}
    gone = {f"{block}.{layer}" for block in BLOCKS for layer in ("conv1", "conv2")}
    assert {name for name, row in rows.items() if row["out_channels"] == 0} == gone
    assert all(rows[name]["macs"] == rows[name]["params"] == 0 < rows[name]["macs_dense"] for name in gone)
    assert rows["layer3.2.conv1"]["removed_channels"] == list(range(8))
    assert sum(row["macs"] for row in rows.values()) == result.plan.achieved["macs"]


def test_layers_that_go_may_be_ignored() -> None:
    ignored = ["layer3.2.conv1", "layer3.1"]
    result = api.prune(
        resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS, method="magnitude", ratio=0.3, ignored_layers=ignored
    )
    assert result.plan.removed
    assert not any(name.startswith("layer3.1") for name in result.plan.removed)
    assert result.plan.request["bounds"]["ignored_layers"] == ignored


@pytest.mark.parametrize("method", ["wanda", "reconstruction"])
def test_methods_measure_the_model_without_the_blocks(method: str) -> None:
    result = api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS, method=method, budget={"macs": 0.4})
    assert torch.isfinite(outputs(result.model)).all()
    assert result.plan.removed


def test_a_plan_without_blocks_is_written_as_before() -> None:
    plain = json.loads(api.prune(resnet(), EXAMPLE, method="magnitude", ratio=0.3).plan.to_json())
    assert plain["format"] == "cleanai-plan/2"
    assert "blocks" not in plain
    removed = json.loads(api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS).plan.to_json())
    assert removed["format"] == "cleanai-plan/3"
    assert [block["block"]["name"] for block in removed["blocks"]] == BLOCKS


def test_a_plan_is_explained() -> None:
    result = api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS)
    text = result.plan.explain()
    assert "groups of layers become narrower, and 3 residual blocks become their shortcut" in " ".join(text.split())
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("layer")}
    dense = result.plan.achieved["macs_dense"]
    assert rows["layer1.1"][:2] == ["4", "41,472"]
    assert rows["layer1.1"][2] == f"{100 * 41472 / dense:.1f}"
    assert "Asked:  no channels" in text


@pytest.mark.parametrize(
    ("names", "given", "error", "message"),
    [
        (
            ["layer1.5"],
            IMAGES,
            PruningError,
            r"names 'layer1.5', which .* did you mean 'layer1\.\d'\? Allowed: layer1.0, ",
        ),
        (["layer2.0"], IMAGES, PruningError, "names 'layer2.0', which is no residual branch that can be removed"),
        (BLOCKS, None, PruningError, "pass batches"),
        (BLOCKS, [], CalibrationError, "the batches given hold none"),
        (BLOCKS, [torch.full((2, 2, 12, 12), torch.nan)], CalibrationError, "block 'layer1.1' .* is not finite"),
    ],
    ids=["unknown", "not removable", "no batches", "no images", "not finite"],
)
def test_what_cannot_be_done_is_refused(names: list[str], given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        api.prune(resnet(), EXAMPLE, given, remove_blocks=names)


def test_a_network_without_blocks_says_so() -> None:
    with pytest.raises(PruningError, match="the model has no residual branch that can be removed"):
        api.prune(build("plain"), example(), batches(), remove_blocks=["conv1"])


def test_a_plan_with_a_mean_of_another_width_is_refused() -> None:
    block = Block(name="b", form="block", end="b.bn2", shape=(3, 1, 1))
    for mean in ((1.0, 2.0), (1.0, 2.0, float("nan"))):
        with pytest.raises(
            PruningError, match=r"block 'b' of the plan: its mean has \d values; allowed: 3 finite numbers"
        ):
            BlockPlan(block=block, mean=mean)


def test_a_plan_of_another_architecture_is_refused() -> None:
    plan = api.prune(resnet(), EXAMPLE, IMAGES, remove_blocks=BLOCKS).plan
    with pytest.raises(ArtifactError, match="another architecture"):
        api.apply_plan(mobilenet(), plan)


@pytest.mark.parametrize("net", [resnet, tiny_vit])
def test_a_model_without_blocks_is_exported(net: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    images, names, ignored = IMAGES[0][0], BLOCKS, []
    if net is tiny_vit:
        ignored = ["heads"]
        images = example(5, size=16, channels=3)
        names = ["encoder.layers.encoder_layer_0.self_attention", "encoder.layers.encoder_layer_1.mlp"]
    result = api.prune(
        net(), images[:2], [images], remove_blocks=names, method="magnitude", ratio=0.3, ignored_layers=ignored
    )
    path = FORMATS.get("onnx")(result.model, images[:2], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), outputs(result.model, images), rtol=1e-3, atol=1e-4)


def test_several_steps_narrow_what_the_blocks_left() -> None:
    """Of 8, 6 and 4 channels half go in three steps, and the result of a branch of the pruner is the same."""
    model = resnet()
    blocks = plan_blocks(model, EXAMPLE, IMAGES, BLOCKS)
    trial = Trial(method="magnitude", ratio=0.5, steps=3)
    pruner = Pruner(model, EXAMPLE, trial, blocks=blocks)
    pruner.take_step(1)
    other = pruner.branch()
    results = []
    for each in (pruner, other):
        each.take_step(2), each.take_step(3)
        results.append(each.finish())
    one, two = results
    assert one.plan == two.plan
    assert {len(group.removed) / group.num_channels for group in one.plan.groups} == {0.5}
    assert torch.equal(outputs(one.model), outputs(two.model))
    assert one.model.layer1[1].mean.shape == (2, 1, 1)
