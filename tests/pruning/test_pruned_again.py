"""A pruned model is pruned again: both plans are kept, and the dense factory alone loads it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import ArtifactError
from cleanai_ray.pruning.history import earlier_plans
from cleanai_ray.pruning.plan import PruningPlan

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def dense() -> nn.Sequential:
    """A network with layers without bias, to which repair adds one where no norm follows."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, bias=False), nn.ReLU(), nn.Conv2d(32, 32, 3, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5, bias=False)).eval()


def pruned(model: nn.Module, ratio: float = 0.25, **options):
    settings = {"method": "magnitude", "round_to": None, "repair": "closed_form", **options}
    return cleanai.prune(model, IMAGES[:1], [IMAGES], ratio=ratio, **settings)


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def test_two_prunings_are_loaded_with_the_dense_factory(tmp_path):
    first = pruned(dense())
    assert widths(first.model) == [24, 24]
    assert "2.bias" in first.model.state_dict()  # so that the second plan is for a model with biases of repair
    cleanai.save(first, tmp_path / "one")
    again = pruned(cleanai.load(tmp_path / "one", dense))
    assert widths(again.model) == [18, 18]
    cleanai.save(again, tmp_path / "two")
    loaded = cleanai.load(tmp_path / "two", dense)
    assert torch.equal(outputs(loaded), outputs(again.model))


def test_any_number_of_prunings_compose(tmp_path):
    model: nn.Module = dense()
    for number, expected in enumerate(([16, 16], [8, 8], [4, 4])):
        result = pruned(model, 0.5)
        assert widths(result.model) == expected
        assert len(result.plan.earlier) == number
        cleanai.save(result, tmp_path / str(number))
        model = cleanai.load(tmp_path / str(number), dense)
        assert torch.equal(outputs(model), outputs(result.model))
    document = json.loads((tmp_path / "2" / "plan.json").read_text())
    assert document["format"] == "cleanai-plan/4"
    assert PruningPlan.from_json((tmp_path / "2" / "plan.json").read_text()).earlier[0].earlier == ()


@pytest.mark.parametrize("way", ["in memory", "copied", "pickled", "fine-tuned"])
def test_a_model_knows_its_plans_however_it_came(tmp_path, way):
    model = pruned(dense()).model
    if way == "copied":
        model = copy.deepcopy(model)
    elif way == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif way == "fine-tuned":
        labels = torch.arange(40) % 5
        cleanai.fine_tune(model, [(IMAGES, labels)], [(IMAGES, labels)], epochs=1, learning_rate=0.01)
    result = pruned(model)
    cleanai.save(result, tmp_path)
    assert torch.equal(outputs(cleanai.load(tmp_path, dense)), outputs(result.model))


def test_a_block_and_then_channels(tmp_path):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), self.branch(), self.branch()
            self.fc = nn.Linear(16, 5)

        @staticmethod
        def branch() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.stem(images).relu()
            x = x + self.one(x)
            x = x + self.two(x)
            return self.fc(x.mean((2, 3)))

    def factory() -> nn.Module:
        torch.manual_seed(2)
        return Residual().eval()

    first = cleanai.prune(factory(), IMAGES[:1], [IMAGES], remove_blocks=["one"])
    second = pruned(first.model)
    assert [plan.blocks != () for plan in second.plan.earlier] == [True]
    cleanai.save(second, tmp_path)
    assert torch.equal(outputs(cleanai.load(tmp_path, factory)), outputs(second.model))


def test_a_model_that_other_hands_changed_counts_as_dense():
    model = pruned(dense()).model
    assert len(earlier_plans(model)) == 1
    model[6] = nn.Linear(24, 7)
    assert earlier_plans(model) == ()
    assert earlier_plans(dense()) == ()


def test_another_dense_model_is_refused(tmp_path):
    cleanai.save(pruned(pruned(dense()).model), tmp_path)
    with pytest.raises(ArtifactError, match="made for another architecture"):
        cleanai.load(tmp_path, lambda: nn.Sequential(*list(dense())[:-1], nn.Linear(32, 6)))
