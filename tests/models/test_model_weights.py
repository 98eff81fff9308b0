"""Weights from files, from torchvision, and what is said where they do not fit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import batches, open_image_source
from cleanai_ray.errors import ModelError
from cleanai_ray.models import build_model, load_weights
from cleanai_ray.models.family import fit_positions
from cleanai_ray.nn import notices
from cleanai_ray.nn.notices import collected_notices

REFERENCE = Path(__file__).parents[1] / "fixtures" / "resnet20_fashion_mnist.safetensors"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def resnet20(**fields) -> ModelSection:
    return ModelSection(name="resnet20", input_shape=(1, 8, 8), **fields)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build_model(resnet20(), seed=3).state_dict()


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's Fashion-MNIST is not installed")
def test_the_reference_network_scores_what_its_readme_says():
    spec = ModelSection(name="resnet20", input_shape=(1, 28, 28), weights=str(REFERENCE))
    model = build_model(spec)
    source = open_image_source(DataSection(name="fashion_mnist"), spec)
    correct = 0
    with torch.no_grad():
        for images, labels in batches(source.dataset("test"), range(10_000), 500):
            correct += int((model(images).argmax(1) == labels).sum())
    assert abs(correct - 9306) <= 3  # rounding differs between processors


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "module.", "without counters"])
def test_every_form_of_file_loads(tmp_path, state, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "module.":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    elif form == "without counters":
        torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    else:
        torch.save(state if form == "plain" else {form: state, "epoch": 3}, path)
    loaded = build_model(resnet20(weights=str(path))).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_family_that_asks_for_its_version_loads(tmp_path):
    spec = ModelSection(name="mnasnet0_5", input_shape=(3, 32, 32))
    model = build_model(spec, seed=1)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = build_model(spec.model_copy(update={"weights": str(tmp_path / "w.safetensors")}))
    assert torch.equal(loaded.classifier[1].weight, model.classifier[1].weight)


def fails(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_weights(build_model(resnet20()), path)
    message = str(caught.value)
    assert "\n" not in message
    assert "model.weights" in message
    assert str(path) in message
    return message


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist" in fails(tmp_path / "nowhere.safetensors")


def test_a_folder_is_no_weights_file(tmp_path):
    assert "cannot be read" in fails(tmp_path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file_is_named(tmp_path, state, name, damage):
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not weights" * 9}[damage])
    assert "not a readable" in fails(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"fc.weight": torch.nn.Linear(2, 2)}, tmp_path / "w.pt")
    message = fails(tmp_path / "w.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert f"`python -m cleanai_ray.models.convert {tmp_path / 'w.pt'} weights.safetensors`" in message


def test_missing_tensors_are_named_with_their_shape(tmp_path, state):
    del state["fc.weight"]
    torch.save(state, tmp_path / "w.pt")
    assert "fc.weight is missing (expected [10,64])" in fails(tmp_path / "w.pt")


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path):
    other = build_model(ModelSection(name="resnet20", input_shape=(3, 8, 8), num_classes=5))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    message = fails(tmp_path / "w.safetensors")
    assert "conv1.weight is [16,3,3,3] (expected [16,1,3,3])" in message
    assert "fc.bias is [5] (expected [10])" in message


def test_a_head_of_another_size_is_new_where_the_model_is_trained(tmp_path, state, caplog):
    torch.save(state, tmp_path / "w.pt")  # of ten classes
    section = resnet20(weights=str(tmp_path / "w.pt"), num_classes=3)
    with pytest.raises(ModelError, match=r"head 'fc' has 10 outputs \(expected 3.*model.train"):
        build_model(section)
    with collected_notices() as warnings, caplog.at_level("WARNING"):
        built = build_model(ModelSection.model_validate({**section.model_dump(), "train": {"epochs": 1}}))
    assert "'fc' has 10 outputs, and the model 3" in caplog.text
    assert warnings == []  # it is what was asked for
    assert built.fc.weight.shape[0] == 3
    body = {name: value for name, value in built.state_dict().items() if not name.startswith("fc.")}
    assert len(body) == len(state) - 2
    assert all(torch.equal(value, state[name]) for name, value in body.items())


@pytest.mark.parametrize(("files", "models"), [(True, False), (False, True)], ids=["file's", "model's"])
def test_a_head_of_another_size_is_new_where_only_one_of_the_two_has_a_bias(tmp_path, files, models):
    def network(outputs: int, bias: bool) -> nn.Module:
        return nn.Sequential(OrderedDict(body=nn.Linear(2, 4), fc=nn.Linear(4, outputs, bias=bias)))

    source, model = network(5, files), network(3, models)
    own = model.fc.weight.detach().clone()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"head 'fc' has 5 outputs \(expected 3"):
        load_weights(model, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", may_lack_head=True)
    assert torch.equal(model.body.weight, source.body.weight)
    assert torch.equal(model.fc.weight, own)


def test_tensors_of_another_network_are_named_and_counted(tmp_path, state):
    torch.save({f"{key}.of_another": value for key, value in state.items()}, tmp_path / "w.pt")
    message = fails(tmp_path / "w.pt")
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert f"and {2 * len(state) - counters - 3} more" in message


@pytest.mark.parametrize("content", [[1, 2], {}, {"lr": 0.1}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert "allowed: " in fails(tmp_path / "w.pt")


@pytest.fixture
def torchvision_cache(tmp_path, monkeypatch, no_network) -> Path:
    """An empty download cache, and a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("num_classes", "same_classifier"), [(1000, True), (7, False)])
def test_published_weights_come_from_torchvisions_cache(torchvision_cache, num_classes, same_classifier):
    published = torchvision.models.squeezenet1_1(weights=None)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(published.state_dict(), torchvision_cache / url.rpartition("/")[2])
    spec = ModelSection(name="squeezenet1_1", input_shape=(3, 64, 64), num_classes=num_classes, weights="pretrained")
    model = build_model(spec)
    assert torch.equal(model.features[0].weight, published.features[0].weight)
    assert (model.classifier[1].weight.shape == published.classifier[1].weight.shape) == same_classifier
    assert model.classifier[1].out_channels == num_classes
    if same_classifier:
        assert torch.equal(model.classifier[1].weight, published.classifier[1].weight)


@pytest.mark.parametrize(("num_classes", "will_train"), [(1000, False), (7, False), (8, True)])
def test_a_head_at_random_beside_published_weights_is_told(
    torchvision_cache, caplog, monkeypatch, num_classes, will_train
):
    monkeypatch.setattr(notices, "_logged", set())  # a line is logged once a process
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(torchvision.models.squeezenet1_1().state_dict(), torchvision_cache / url.rpartition("/")[2])
    spec = {"name": "squeezenet1_1", "input_shape": (3, 64, 64), "num_classes": num_classes, "weights": "pretrained"}
    with collected_notices() as warnings, caplog.at_level("WARNING"):
        build_model(ModelSection(**spec, train={"epochs": 1} if will_train else None))
    told = f"the head of squeezenet1_1 is new: model.num_classes is {num_classes}, and the source has 1000 classes"
    assert (told in caplog.text) == (num_classes != 1000)
    assert len(warnings) == (num_classes != 1000 and not will_train)


def test_published_weights_do_not_fit_another_stem(torchvision_cache):
    published = torchvision.models.squeezenet1_1(weights=None)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(published.state_dict(), torchvision_cache / url.rpartition("/")[2])
    spec = ModelSection(name="squeezenet1_1", input_shape=(1, 64, 64), num_classes=1000, weights="pretrained")
    with pytest.raises(ModelError, match=r"'pretrained' does not fit .*features\.0\.weight is \[64,3,3,3\]"):
        build_model(spec)


def test_a_download_that_fails_says_what_else_is_allowed(torchvision_cache):
    spec = ModelSection(name="resnet18", input_shape=(3, 32, 32), num_classes=1000, weights="pretrained")
    with pytest.raises(ModelError, match=r"could not be downloaded .*allowed without internet access: the path"):
        build_model(spec)


def test_position_embeddings_are_interpolated_to_the_image_size():
    def tiny(size: int) -> VisionTransformer:
        return VisionTransformer(size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)

    published, model = tiny(32), tiny(64)
    with torch.no_grad():
        published.encoder.pos_embedding[:, 1:] = 2.5  # a constant field stays constant under interpolation
        published.encoder.pos_embedding[:, :1] = -1.0
    state = fit_positions(model, published.state_dict())
    model.load_state_dict(state)
    assert model.encoder.pos_embedding.shape == (1, 1 + 4 * 4, 8)
    assert torch.allclose(model.encoder.pos_embedding[:, 1:], torch.tensor(2.5))
    assert torch.equal(model.encoder.pos_embedding[:, :1], torch.full((1, 1, 8), -1.0))


def test_a_family_without_published_weights_says_so():
    with pytest.raises(ModelError, match=r"ResNet20 has no published weights; allowed: the path"):
        build_model(resnet20(weights="pretrained"))
