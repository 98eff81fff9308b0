"""The study files of the repository: they load, state their question and cost, and expand to the grids they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import VisionTransformer

from cleanai_ray.cli import main
from cleanai_ray.config.study import load_study
from cleanai_ray.data import assign_roles, open_image_source
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model
from cleanai_ray.registry import METHODS, METRICS
from cleanai_ray.tasks import find_task

STUDIES = Path(__file__).parents[2] / "jobs" / "studies"

# Methods that a coverage metric multiplies, metrics, other methods, ratios, modes, steps.
GRIDS = {
    "quickstart": (2, 4, 5, 2, 2, 1),
    "fashion_mnist": (2, 2, 4, 2, 2, 1),
    "research_fashion_mnist": (2, 8, 10, 3, 2, 1),
    "ts1_resnet18_cifar10": (1, 4, 3, 1, 2, 1),
    "ts2_resnet50_imagenet": (1, 1, 3, 1, 1, 1),
    "ts3_resnet50_imagenet_local": (1, 1, 3, 1, 1, 1),
    "ts4_resnet50_imagenet_global": (1, 1, 3, 1, 1, 1),
    "ts5_efficientnet_b4_food101_local": (1, 1, 3, 1, 1, 1),
    "ts6_efficientnet_b4_food101_global": (1, 1, 3, 1, 1, 1),
    "imagenet_resnet50_training_free": (0, 1, 1, 1, 1, 1),
    "imagenet_deit_b_training_free": (0, 1, 1, 1, 1, 1),
    "small_vgg_fashion_mnist": (0, 1, 2, 1, 1, 1),
    "small_mobilenet_v2_fashion_mnist": (0, 1, 2, 1, 1, 1),
    "small_vit_fashion_mnist": (0, 1, 2, 1, 1, 1),
    # Random has two seeds, and counts as two methods.
    "research_second_edition_resnet20": (2, 1, 5, 3, 1, 1),
    "research_second_edition_vgg": (2, 1, 5, 3, 1, 1),
    "research_second_edition_mobilenet_v2": (2, 1, 5, 3, 1, 1),
    "segmentation": (0, 1, 4, 2, 1, 1),
    "detection": (0, 1, 3, 1, 1, 1),
    "language_model": (0, 1, 4, 2, 1, 1),
    "multilabel": (0, 1, 4, 2, 1, 1),
    "regression": (0, 1, 4, 2, 1, 1),
}
SECOND_EDITION = [name for name in GRIDS if name.startswith("research_second_edition")]
# Numbers of calibration samples, and seeds of their draw.
DRAWS = {"research_fashion_mnist": 2 * 3, **dict.fromkeys(SECOND_EDITION, 3)}
# From scratch, narrow, dense fine-tuned; torch-pruning for each of three budgets and three draws.
CONTROLS = dict.fromkeys(SECOND_EDITION, 3 + 3 * 3)
# Ratio, mode and epochs of fine-tuning, as CleanAI v5 ran them.
SCENARIOS = {
    "ts2_resnet50_imagenet": (0.2, "local", 5),
    "ts3_resnet50_imagenet_local": (0.1, "local", 10),
    "ts4_resnet50_imagenet_global": (0.1, "global", 10),
    "ts5_efficientnet_b4_food101_local": (0.1, "local", 10),
    "ts6_efficientnet_b4_food101_global": (0.1, "global", 10),
}


def test_every_study_file_is_known_here():
    assert {path.stem for path in STUDIES.iterdir()} == set(GRIDS)


@pytest.mark.parametrize("name", GRIDS)
def test_a_study_loads_and_expands_to_its_grid(name):
    study = load_study(STUDIES / f"{name}.yaml")
    with_metric, metrics, without, ratios, modes, steps = GRIDS[name]
    trials = study.trials()
    in_the_grid = (with_metric * metrics + without) * ratios * modes * steps * DRAWS.get(name, 1)
    assert len([trial for trial in trials if trial.control is None]) == in_the_grid
    assert len(trials) == in_the_grid + CONTROLS.get(name, 0)
    assert len({trial.trial_id for trial in trials}) == len(trials)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.output.dir == f"artifacts/{name}"


@pytest.mark.parametrize("name", GRIDS)
def test_a_study_says_first_what_it_costs(name):
    text = (STUDIES / f"{name}.yaml").read_text()
    assert text.splitlines()[1].startswith(("# Cost: an estimate of ", "# Cost: measured, ")), (
        "below the line that names the schema"
    )
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_published_scenarios_are_asked_as_they_were(name):
    study = load_study(STUDIES / f"{name}.yaml")
    ratio, mode, epochs = SCENARIOS[name]
    assert {(trial.ratio, trial.mode) for trial in study.trials()} == {(ratio, mode)}
    assert [trial.method for trial in study.trials()] == ["coverage", "wanda", "magnitude", "taylor"]
    assert study.finetune.epochs == epochs


@pytest.mark.parametrize("name", GRIDS)
def test_the_network_of_a_study_can_be_built(name):
    """With random weights, at the study's own input shape."""
    if name == "language_model":
        pytest.importorskip("transformers")
    study = load_study(STUDIES / f"{name}.yaml", overrides=["model.weights=null"])
    build_model(study.model, task=find_task(study.task.name))


@pytest.mark.parametrize("name", ["imagenet_resnet50_training_free", "imagenet_deit_b_training_free"])
def test_a_training_free_study_is_planned_on_a_tree_of_the_same_format(name, tmp_path, capsys):
    for split in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / split / label / f"{number}.JPEG")
    changes = [f"data.root={tmp_path}", "model.weights=null", "model.num_classes=2", "model.input_shape=[3, 64, 64]"]
    changes += ["data.calibration.samples=5", "data.num_workers=0"]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["plan", str(STUDIES / f"{name}.yaml"), *words, "--out", str(tmp_path / "run")]) == 0
    assert "5 calibration" in capsys.readouterr().out


def test_half_of_every_mlp_of_deit_is_pruned_and_nothing_else():
    study = load_study(STUDIES / "imagenet_deit_b_training_free.yaml")
    small = VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
    assert len(study.pruning.ignored_layers) == 13  # the embedding, and the attention of twelve layers
    present = dict(small.named_modules())
    ignored = [name for name in [*study.pruning.ignored_layers, "heads.head"] if name in present]
    graph = ChannelGraph(small, torch.zeros(1, 3, 32, 32), ignored)
    layers = [f"encoder.layers.encoder_layer_{number}.mlp.0" for number in range(2)]
    assert sorted(group.name for group in graph.groups) == layers
    assert study.sweep.ratios == (0.5,)


def test_the_published_budget_of_resnet50_is_asked():
    """2.4 billion multiply-accumulates, of the 4,089,184,256 that its layers have at 224 pixels."""
    (budget,) = load_study(STUDIES / "imagenet_resnet50_training_free.yaml").sweep.budgets
    assert budget.limit * 4_089_184_256 == pytest.approx(2.4e9, rel=1e-3)


def test_the_quickstart_has_the_samples_that_it_asks_for():
    study = load_study(STUDIES / "quickstart.yaml")
    roles = assign_roles(study.data, study.evaluation, open_image_source(study.data, study.model))
    assert len(roles.calibration) == 512
    assert not roles.calibration_withheld  # 512 is more than a fifth of the 1,438 training images
    assert len(roles.training) == 1438 - 144


def test_the_research_study_asks_for_every_method_and_metric():
    study = load_study(STUDIES / "research_fashion_mnist.yaml")
    for names, registry in ((study.sweep.methods, METHODS), (study.sweep.coverage_metrics, METRICS)):
        own = [name for name in registry.names() if registry.get(name).__module__.startswith("cleanai_ray.")]
        assert sorted(names) == sorted(own)
    # Without fine-tuning, seeds of the trials would repeat every method but random: the draws are the replicates.
    assert study.finetune.epochs == 0
    assert study.sweep.seeds == (0,)
    assert len(study.data.calibration.seed) >= 3


@pytest.mark.parametrize("name", SECOND_EDITION)
def test_the_second_edition_has_replicates_controls_and_images_that_decide_nothing(name):
    study = load_study(STUDIES / f"{name}.yaml")
    assert study.model.train is not None  # each run trains its network anew, by model.train.seed
    assert study.data.calibration.disjoint
    assert len(study.draws()) == 3
    random = {trial.scoring_seed for trial in study.trials() if trial.method == "random"}
    assert len(random) >= 5
    assert {budget.limit for budget in study.sweep.budgets} == {0.7, 0.5, 0.3}
    assert study.repair.is_on
    assert study.fine_tunes
    assert study.evaluation.validation_share == 0.5
    assert study.questions.primary is not None


def test_the_runs_of_the_second_edition_differ_in_the_network_alone():
    studies = [load_study(STUDIES / f"{name}.yaml") for name in SECOND_EDITION]
    others = [study.model_dump(exclude={"name", "question", "model", "output"}) for study in studies]
    assert others[0] == others[1] == others[2]


def test_weights_of_the_users_own_replace_training():
    study = load_study(STUDIES / "fashion_mnist.yaml", overrides=["model.weights=own.safetensors", "model.train=null"])
    assert study.model.train is None
    assert study.model.weights == "own.safetensors"
