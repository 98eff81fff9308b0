"""The library without a file and without Ray: calibrate, prune, save, load."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small_nets import NETS, batches, build, example, tiny_vit
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import ArtifactError, CleanAIError, PruningError, RegistryError, StudyError
from cleanai_ray.importance.base import create_method
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.registry import METHODS, MODELS
from cleanai_ray.repair import RepairOptions
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.storage import schemas


def pruned(model: nn.Module | None = None, **options: Any) -> cleanai.PruneResult:
    return cleanai.prune(model or build("residual"), example(), batches(), **{"ratio": 0.5, **options})


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["coverage", "magnitude"])
def test_save_and_load_give_the_same_outputs_bit_by_bit(net: str, method: str, tmp_path: Path) -> None:
    result = pruned(build(net), method=method)
    cleanai.save(result, tmp_path / "small")
    loaded = cleanai.load(tmp_path / "small", lambda: build(net, seed=5)).eval()
    images = example(6)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    assert {file.name for file in (tmp_path / "small").iterdir()} == {"plan.json", "weights.safetensors"}


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vit"])
def test_real_architectures_survive_saving(name: str, tmp_path: Path) -> None:
    def factory() -> nn.Module:
        if name == "vit":
            return tiny_vit()
        if name == "resnet20":
            return MODELS.get("resnet20")().build(num_classes=5, input_shape=(3, 16, 16))
        return torchvision.models.mobilenet_v2(num_classes=5)

    torch.manual_seed(0)
    model, images = factory().eval(), example(2, size=16, channels=3)
    result = cleanai.prune(model, images, batches(size=16, channels=3, classes=5), method="wanda", ratio=0.4)
    cleanai.save(result, tmp_path)
    with torch.no_grad():
        assert torch.equal(cleanai.load(tmp_path, factory).eval()(images), result.model(images))


def test_fine_tuned_weights_are_what_is_saved(tmp_path: Path) -> None:
    result = pruned()
    with torch.no_grad():
        for value in result.model.state_dict().values():
            value.add_(1)
    cleanai.save(result, tmp_path)
    restored = cleanai.load(tmp_path, lambda: build("residual")).state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in result.model.state_dict().items())


def saved(tmp_path: Path) -> Path:
    cleanai.save(pruned(), tmp_path)
    return tmp_path


def load(folder: Path, net: str = "residual") -> nn.Module:
    return cleanai.load(folder, lambda: build(net))


def test_weights_that_were_cut_or_changed_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "weights.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", content[:-4] + b"\0\0\0\1"):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"'weights.safetensors' .* corrupted, cut off, .* plan"):
            load(tmp_path)


def test_weights_of_another_saved_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    cleanai.save(pruned(ratio=0.3), tmp_path / "two")
    (tmp_path / "one" / "weights.safetensors").write_bytes((tmp_path / "two" / "weights.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"'weights.safetensors' .* another plan"):
        load(tmp_path / "one")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ArtifactError, match=r"another architecture \(Residual\) than the one given \(Depthwise\)"):
        load(tmp_path, "depthwise")


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "plan.json"
    document = json.loads(file.read_text())
    document["groups"][0]["removed"] = document["groups"][0]["removed"][1:]
    file.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["plan.json", "weights.safetensors"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    (saved(tmp_path) / missing).unlink()
    with pytest.raises(ArtifactError, match=missing.replace(".", r"\.")):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_nothing_is_pickled(tmp_path: Path) -> None:
    saved(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == "cleanai-plan/2"
    header = (tmp_path / "weights.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


@pytest.mark.parametrize("method", METHODS.names())
def test_statistics_may_stand_in_for_batches(method: str) -> None:
    model, data = build("residual"), batches()
    needed = create_method(method)
    stats = cleanai.calibrate(
        model, data, gradients=needed.needs_gradients, squared_gradients=needed.needs_squared_gradients
    )
    options: dict[str, Any] = {"method": method, "ratio": 0.5, "ignored_layers": ["head"]}
    by_batches = cleanai.prune(model, example(), data, **options)
    curves = cleanai.measure_sensitivity(model, example(), data, ignored_layers=["head"])
    by_stats = cleanai.prune(model, example(), stats=stats, curves=curves, **options)
    assert by_stats.plan == by_batches.plan


def test_merged_statistics_of_shards_give_the_same_plan() -> None:
    model, data = build("residual"), batches()
    first, second, third = (cleanai.calibrate(model, [batch]) for batch in data)
    merged = cleanai.prune(model, example(), method="wanda", ratio=0.5, stats=third + (second + first))
    assert merged.plan == cleanai.prune(model, example(), data, method="wanda", ratio=0.5).plan


def test_statistics_given_are_used_and_not_measured_again() -> None:
    def unreadable() -> Any:
        raise AssertionError("the batches were read")
        yield

    stats = cleanai.calibrate(build("plain"), batches())
    cleanai.prune(build("plain"), example(), unreadable(), method="coverage", ratio=0.5, stats=stats)


def test_seeds_matter_to_random_alone() -> None:
    plans = {seed: pruned(method="random", seed=seed).plan.removed for seed in range(4)}
    assert len({str(plan) for plan in plans.values()}) > 1
    assert pruned(method="wanda", seed=0).plan.removed == pruned(method="wanda", seed=1).plan.removed


def test_a_tuple_of_one_example_is_the_example() -> None:
    model, data = build("plain"), batches()
    one, other = (cleanai.prune(model, inputs, data, ratio=0.5) for inputs in (example(), (example(),)))
    assert one.plan == other.plan


def test_the_layers_of_a_result_are_rows_of_the_layers_table() -> None:
    model = build("grouped")
    result = pruned(model, mode="global")
    table = schemas.to_table(({"trial_id": "t", **layer} for layer in result.layers), schemas.LAYERS)
    rows = {row["layer"]: row for row in table.to_pylist()}
    assert list(rows) == ["conv1", "grouped", "conv3", "fc"]
    assert [row["layer_index"] for row in rows.values()] == [0, 1, 2, 3]
    for name, row in rows.items():
        dense, small = model.get_submodule(name).weight, result.model.get_submodule(name).weight
        assert (row["out_channels_dense"], row["out_channels"]) == (dense.shape[0], small.shape[0])
        assert len(row["removed_channels"]) == dense.shape[0] - small.shape[0]
        assert row["removed_channels"] == list(result.plan.removed.get(name, ()))
    assert rows["fc"]["group"] is None
    assert rows["fc"]["in_channels"] == rows["conv3"]["out_channels"]
    pruned_cost, dense_cost = measure_complexity(result.model, example(1)), measure_complexity(model, example(1))
    assert sum(row["macs"] for row in rows.values()) == pruned_cost.macs
    assert sum(row["macs_dense"] for row in rows.values()) == dense_cost.macs


def test_a_stream_has_one_group_and_every_layer_of_it_the_same_removed_channels() -> None:
    rows = {row["layer"]: row for row in pruned().layers}
    assert rows["stem"]["group"] == rows["conv2"]["group"] == "conv2"
    assert rows["stem"]["removed_channels"] == rows["conv2"]["removed_channels"]
    assert len(rows["stem"]["removed_channels"]) == 3


def test_kept_indices_are_those_of_the_weights() -> None:
    model = build("residual")
    result = pruned(model)
    kept = torch.as_tensor(result.kept_outputs["conv1"])[:, None]
    read = torch.as_tensor(result.kept_inputs["conv1"])
    assert torch.equal(result.model.conv1.weight, model.conv1.weight[kept, read])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "magnitud"}, RegistryError, r"unknown method 'magnitud'; known: .*magnitude"),
        ({"ratio": 1.5}, PruningError, r"ratio is 1\.5; allowed: null or a number above 0 and below 1"),
        ({"ratio": 0.0}, PruningError, r"ratio is 0\.0; allowed: null or a number above 0 and below 1"),
        ({"ratio": -0.1}, PruningError, r"ratio is -0\.1; allowed"),
        ({"ratio": float("nan")}, PruningError, r"ratio is NaN; allowed: null or a finite number"),
        ({"ratio": "half"}, PruningError, r"ratio is 'half'; allowed"),
        ({"ratio": 0.95}, PruningError, r"ratio is 0\.95; allowed: at most max_ratio, 0\.9"),
        ({"ratio": 0.5, "budget": {"macs": 0.5}}, PruningError, r"ratio is 0\.5 and budget is macs=0\.5; allowed: one"),
        ({"ratio": None}, PruningError, r"ratio and budget are both null; needed: exactly one of them"),
        ({"ratio": None, "budget": {"macs": 1.2}}, PruningError, r"budget\.macs is 1\.2; allowed"),
        ({"ratio": None, "budget": {}}, PruningError, r"budget limits nothing; allowed: exactly one of macs, params"),
        ({"ratio": None, "budget": {"flops": 0.5}}, PruningError, r"unknown key 'budget\.flops'"),
        (
            {"ratio": None, "budget": {"macs": 0.5, "params": 0.5}},
            PruningError,
            r"budget limits macs and params; allowed: exactly one",
        ),
        ({"mode": "galactic"}, PruningError, r"mode is 'galactic'; allowed: 'local' or 'global'"),
        ({"steps": 0}, PruningError, r"steps is 0; allowed: an integer of at least 1"),
        ({"seed": -1}, PruningError, r"seed is -1; allowed: an integer of at least 0"),
        ({"max_ratio": 1.0}, PruningError, r"max_ratio is 1\.0; allowed: a number above 0 and below 1"),
        ({"min_channels": 0}, PruningError, r"min_channels is 0; allowed: an integer of at least 1"),
        ({"round_to": 0}, PruningError, r"round_to is 0; allowed: null or 'auto' or an integer of at least 1"),
        ({"layer_ratios": {"conv1": 2.0}}, PruningError, r"layer_ratios.* is 2\.0; allowed"),
        ({"layer_ratios": {"nothing": 0.5}}, PruningError, r"layer_ratios names 'nothing'"),
        ({"ignored_layers": ["nothing"]}, PruningError, r"ignored_layers names 'nothing'"),
        ({"repair": "thorough"}, PruningError, r"repair is 'thorough'; allowed: True, False, 'auto'"),
        ({"repair": 1.5}, PruningError, r"repair is 1\.5; allowed: True, False, 'auto'"),
        ({"repair": "none"}, PruningError, r"repair is 'none'; allowed: .*'unfolded', 'blockwise', or keys of"),
        ({"repair": {"compensations": "auto"}}, PruningError, r"unknown key 'compensations'.*compensation"),
        ({"repair": {"compensation": "magic"}}, PruningError, r"compensation is 'magic'; allowed: .*'unfolded'"),
        ({"repair": {"samples": 10}}, PruningError, r"repair has the key 'samples'; allowed: the other keys"),
        ({"repair": {"distill_steps": -1}}, PruningError, r"distill_steps is -1; allowed: an integer of at least 0"),
        ({"repair": {"block_steps": 0}}, PruningError, r"block_steps is 0; allowed: an integer of at least 1"),
        ({"repair": {"seconds": 0}}, PruningError, r"seconds is 0.*; allowed: null or a number above 0"),
        ({"repair": {"ridge": "much"}}, PruningError, r"ridge is 'much'; allowed: null or a number above 0"),
        ({"coverage_metric": "loudness"}, RegistryError, r"unknown coverage metric 'loudness'; known: apoz"),
        (
            {"method": "wanda", "method_options": {"variant": "x"}},
            StudyError,
            r"variant is 'x'; allowed: consumer, producer",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_not_allowed_is_refused_in_one_sentence(
    options: dict[str, Any], error: type[CleanAIError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pruned(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["coverage", "wanda", "taylor", "adaptive"])
def test_methods_that_read_data_ask_for_it(method: str) -> None:
    with pytest.raises(PruningError, match=f"method '{method}' reads calibration data.*pass batches or stats"):
        cleanai.prune(build("plain"), example(), method=method, ratio=0.5)


def test_taylor_asks_for_statistics_with_gradients() -> None:
    stats = cleanai.calibrate(build("plain"), batches())
    with pytest.raises(PruningError, match=r"method 'taylor' reads gradients.*calibrate with gradients=True"):
        cleanai.prune(build("plain"), example(), method="taylor", ratio=0.5, stats=stats)


def test_adaptive_asks_for_batches_between_steps_before_it_starts() -> None:
    stats = cleanai.calibrate(build("plain"), batches())
    cleanai.prune(build("plain"), example(), method="adaptive", ratio=0.5, stats=stats)
    with pytest.raises(PruningError, match=r"'adaptive' measures again between steps.*pass batches"):
        cleanai.prune(build("plain"), example(), method="adaptive", ratio=0.5, steps=2, stats=stats)


def test_statistics_of_another_model_are_refused() -> None:
    stats = cleanai.calibrate(build("plain"), batches())
    with pytest.raises(PruningError, match=r"layer 'fc' have 8 channels, .* has 5; .* another model"):
        cleanai.prune(build("residual"), example(), method="coverage", ratio=0.5, stats=stats)


def test_a_loss_of_ones_own_changes_the_gradients_that_taylor_reads() -> None:
    model, data = build("plain"), batches()

    def only_the_first_output(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return output[:, 0].mean()

    # With the reader's weights of output 0 zero for all but three channels, only these have a gradient.
    with torch.no_grad():
        model.fc.weight[0] = 0.0
        model.fc.weight[0, [1, 4, 6]] = 50.0
        model.bn2.bias.fill_(2.0)
    options = {"ratio": 0.6, "loss": only_the_first_output, "round_to": None}
    plan = cleanai.prune(model, example(), data, method="taylor", **options).plan
    assert set(plan.removed["conv2"]) == {0, 2, 3, 5, 7}


def test_trials_hold_exactly_one_amount() -> None:
    for amount in (
        {},
        {"ratio": 0.5, "budget": {"macs": 0.5}},
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"steps": 0, "ratio": 0.5},
    ):
        with pytest.raises(ValueError, match=r"ratio|steps"):
            Trial.model_validate({"method": "magnitude", **amount})
    assert Trial.model_validate({"method": "magnitude", "budget": {"macs": 1.0}}).ratio is None


def test_the_public_names() -> None:
    assert set(cleanai.__all__) == {
        "PruneResult",
        "analyse",
        "apply_plan",
        "calibrate",
        "cheapest_blocks",
        "evaluate",
        "fine_tune",
        "latency_profile",
        "load",
        "load_run",
        "measure_blocks",
        "measure_sensitivity",
        "prune",
        "run",
        "save",
    }
    assert all(callable(getattr(cleanai, name)) for name in cleanai.__all__)
    assert {*cleanai.__all__, "__version__"} == set(dir(cleanai))
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = cleanai.prunes


def test_the_library_needs_no_ray() -> None:
    code = "import sys; from cleanai_ray import prune, calibrate; print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (True, {}),
        ("auto", {}),
        ({}, {}),
        ("unfolded", {"compensation": "unfolded", "batch_norm": "relative"}),
        ({"compensation": "unfolded"}, {"compensation": "unfolded", "batch_norm": "relative"}),
        ({"compensation": "unfolded", "batch_norm": "none", "ridge": 0.1},) * 2,
        ({"compensation": "blockwise", "batch_norm": "auto", "block_steps": 3},) * 2,
        ({"distill_steps": 4, "block_steps": 2},) * 2,
    ],
    ids=str,
)
def test_repair_takes_a_name_or_the_keys_of_a_study(given, options):
    images = [images for images, _ in batches(sizes=(20, 20))]
    wanted = {"method": "magnitude", "ratio": 0.4, "seed": 5}
    found = cleanai.prune(build("residual"), example(), images, repair=given, **wanted)
    plain = cleanai.prune(build("residual"), example(), **wanted)
    expected = repair_model(build("residual"), plain, images, RepairOptions(**options, seed=5)).model
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in found.model.state_dict().items())
    assert not all(torch.equal(value, plain.model.state_dict()[key]) for key, value in found.model.state_dict().items())


def test_no_repair_changes_nothing_and_a_repair_asks_for_images():
    plain, without = (
        cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.4, **more)
        for more in ({}, {"repair": False})
    )
    assert all(torch.equal(value, without.model.state_dict()[key]) for key, value in plain.model.state_dict().items())
    for given in (True, "unfolded", {"distill_steps": 3}):
        with pytest.raises(PruningError, match=r"reads calibration images, but batches is None; pass batches"):
            cleanai.prune(build("residual"), example(), method="magnitude", ratio=0.4, repair=given)


def test_a_bias_that_repair_added_survives_saving(tmp_path):
    """A convolution without a bias and without a batch-norm behind it gets one from repair, and load gives it back."""

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        ).eval()

    images = [torch.randn(32, 3, 12, 12) for _ in range(3)]
    result = cleanai.prune(network(), images[0][:1], images, ratio=0.4, repair="closed_form")
    assert "2.bias" in dict(result.model.named_parameters())
    cleanai.save(result, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, network)(images[0]), result.model(images[0]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3, groups=2, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.ConvTranspose2d(8, 12, 3, bias=False),
    ],
    ids=["grouped", "depthwise", "transposed"],
)
def test_a_bias_that_repair_added_to_any_kind_of_convolution_survives_saving(tmp_path, layer):
    def network() -> nn.Module:
        first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(layer.out_channels, 5, 1)
        layers = (first, nn.Conv2d(8, 8, 1), nn.ReLU(), copy.deepcopy(layer), nn.ReLU(), last)
        return nn.Sequential(*layers).eval()

    images = [torch.randn(16, 3, 8, 8)]
    wanted = {"method": "magnitude", "ratio": 0.5, "ignored_layers": ["5"], "repair": "unfolded"}
    result = cleanai.prune(network(), images[0][:1], images, **wanted)
    assert "3.bias" in dict(result.model.named_parameters())
    cleanai.save(result, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, network)(images[0]), result.model(images[0]))


@pytest.mark.parametrize("options", [{"repair": True}, {"method": "adaptive", "steps": 2}])
def test_batches_from_a_generator_can_be_read_as_often_as_needed(options):
    images = [torch.randn(16, 1, 8, 8) for _ in range(2)]
    model = MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 8, 8)).eval()
    once, again = (
        cleanai.prune(model, images[0][:1], given, ratio=0.3, **options) for given in ((x for x in images), images)
    )
    assert once.plan == again.plan
    assert torch.equal(once.model(images[0]), again.model(images[0]))
