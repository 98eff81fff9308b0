"""Repair as one call: its choice, its record, and the models that it must not change."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pruned_nets import Case, images_for, planted_case, random_case
from torch import Tensor, nn

import cleanai_ray
from cleanai_ray.config.sections import RepairSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import batches, open_image_source
from cleanai_ray.errors import CalibrationError, PruningError
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.models import build_model
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import RepairOptions, auto, recalibrate, repair
from cleanai_ray.repair.auto import split_images
from cleanai_ray.repair.batch_norm import collect_norm_sums
from cleanai_ray.repair.options import BATCH_NORMS, COMPENSATIONS
from cleanai_ray.repair.outputs import divergence

VARIANTS = [("none", None), *product(["closed_form"], (1e-3, 1e-2)), ("unfolded", None)]

CHOSEN = {"ridge": None, "distill_steps": 0, "kl": None}


@torch.no_grad()
def kl_on_held_back(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Mean KL(dense || other) on images 4, 9, 14, ... , term by term."""
    held = images[4::5]
    total = 0.0
    for p, q in zip(dense(held).double().softmax(1), other(held).double().softmax(1), strict=True):
        total += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    return total / len(held)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flattened", "vit"])
def test_auto_takes_the_variant_nearest_to_the_dense_model_and_never_a_worse_one_than_none(name: str) -> None:
    case, images = random_case(name, torch.float32), images_for(name, 60)
    outcome = repair(case.dense, case.result, list(images.split(16)))
    assert [(e["compensation"], e["ridge"], e["batch_norm"]) for e in outcome.tried] == [
        (*pair, norm) for pair in VARIANTS for norm in ("none", "relative")
    ]
    assert outcome.chosen["kl"] == min(entry["kl"] for entry in outcome.tried)
    assert outcome.tried[0]["kl"] == pytest.approx(kl_on_held_back(case.dense, case.result.model, images), rel=1e-6)
    assert outcome.chosen["kl"] == pytest.approx(kl_on_held_back(case.dense, outcome.model, images), rel=1e-4, abs=1e-9)
    assert outcome.chosen["kl"] <= outcome.tried[0]["kl"]


def test_recalibrations_are_compared_after_an_eighth_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 images, 320 repair: 40 of them are read for each recalibration, and the other 280 where it may win."""
    case, images = random_case("plain", torch.float32), images_for("plain", 400)
    read: list[int] = []

    def counted(model: nn.Module, batches: list[Tensor]) -> Any:
        read.append(sum(len(batch) for batch in batches))
        return collect_norm_sums(model, batches)

    monkeypatch.setattr(auto, "collect_norm_sums", counted)
    outcome = repair(case.dense, case.result, images.split(50), RepairOptions(compensation="none"))
    by_hand = {"none": kl_on_held_back(case.dense, case.result.model, images)}
    relative = copy.deepcopy(case.result.model)
    working = images[torch.arange(400) % 5 != 4]
    first = torch.arange(320) % 8 == 0
    batches = [*working[first].split(50), *working[~first].split(50)]
    recalibrate(case.dense, relative, batches, kept_outputs=case.result.kept_outputs)
    by_hand["relative"] = kl_on_held_back(case.dense, relative, images)
    assert by_hand["relative"] < by_hand["none"]
    assert {entry["batch_norm"]: entry["kl"] for entry in outcome.tried} == pytest.approx(by_hand, rel=1e-4)
    assert read == [40, 40, 280, 280]
    read.clear()
    outcome = repair(case.dense, case.result, images.split(50))
    assert outcome.chosen["kl"] == min(entry["kl"] for entry in outcome.tried)
    # Without a compensation, batch statistics are of no use: the dense model's and at most three others are finished.
    assert read.count(40) == 5
    assert read.count(280) <= 4
    read.clear()
    repair(case.dense, case.result, images[:60].split(50), RepairOptions(compensation="none"))
    assert read == [48, 48]  # An eighth of so few would say little.


def test_a_model_that_flattens_by_view_is_repaired() -> None:
    """Its maps must not have their channels last in memory."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
            self.head = nn.Linear(6 * 16, 4)

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.relu(self.conv2(torch.relu(self.conv1(x))))
            return self.head(maps.view(len(maps), -1))

    torch.manual_seed(0)
    net, images = Net().eval(), torch.randn(60, 3, 4, 4)
    result = cleanai_ray.prune(net, images[:1], method="magnitude", ratio=0.3, ignored_layers=["conv2"])
    outcome = repair(net, result, images.split(16))
    assert outcome.chosen["kl"] < outcome.tried[0]["kl"]


def test_auto_finds_the_planted_redundancy() -> None:
    case = planted_case("vit")
    outcome = repair(case.dense, case.result, [images_for("vit", 60)])
    assert outcome.chosen["compensation"] != "none"
    assert outcome.tried[0]["kl"] > 0.1
    assert outcome.chosen["kl"] < 1e-4


def test_auto_takes_none_where_nothing_is_nearer() -> None:
    dense = random_case("plain", torch.float32).dense
    outcome = repair(dense, Case.untouched(dense).result, [images_for("plain", 20)])
    assert outcome.chosen == {**CHOSEN, "compensation": "none", "batch_norm": "none", "kl": 0.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"compensation": "sequential"}, [("sequential", "none", 1e-3), ("sequential", "relative", 1e-3)]),
        (
            {"compensation": "sequential", "ridge": 0.1},
            [("sequential", "none", 0.1), ("sequential", "relative", 0.1)],
        ),
        ({"batch_norm": "reset"}, [(name, "reset", ridge) for name, ridge in VARIANTS]),
        (
            {"batch_norm": "reset", "ridge": 0.1},
            [("none", "reset", None), ("closed_form", "reset", 0.1), ("unfolded", "reset", 0.1)],
        ),
    ],
)
def test_auto_keeps_to_what_was_asked_for_by_name(options: dict[str, Any], expected: list) -> None:
    case = random_case("residual", torch.float32)
    outcome = repair(case.dense, case.result, [images_for("residual", 30)], RepairOptions(**options))
    assert [(e["compensation"], e["batch_norm"], e["ridge"]) for e in outcome.tried] == expected


@pytest.mark.parametrize("compensation", ["none", "closed_form", "sequential", "unfolded"])
@pytest.mark.parametrize("batch_norm", ["none", "relative", "reset"])
def test_a_repair_by_name_uses_labelled_batches_too_and_changes_nothing_it_is_given(
    compensation: str, batch_norm: str
) -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", 20)
    before = copy.deepcopy(case.dense.state_dict()), copy.deepcopy(case.result.model.state_dict())
    pairs = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in images.split(7)]
    outcome = repair(
        case.dense, case.result, lambda: iter(pairs), RepairOptions(compensation=compensation, batch_norm=batch_norm)
    )
    plain = repair(
        case.dense, case.result, images.split(7), RepairOptions(compensation=compensation, batch_norm=batch_norm)
    )
    for model, state in zip((case.dense, case.result.model), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert count_hooks(model) == 0
    assert count_hooks(outcome.model) == 0
    same = {key: torch.equal(value, before[1][key]) for key, value in outcome.model.state_dict().items()}
    assert all(same.values()) == (compensation == batch_norm == "none")
    assert all(torch.equal(value, plain.model.state_dict()[key]) for key, value in outcome.model.state_dict().items())
    ridge = {"none": None, "unfolded": None}.get(compensation, 1e-3)
    assert outcome.chosen == {**CHOSEN, "compensation": compensation, "batch_norm": batch_norm, "ridge": ridge}
    assert outcome.tried == ()


def kl_record(case: Case, outcome: Any, images: Tensor) -> Any:
    """Checks the distance that an outcome speaks of, and returns it."""
    measured = kl_on_held_back(case.dense, outcome.model, images)
    assert outcome.chosen["kl"] == pytest.approx(measured, rel=1e-3, abs=1e-9)
    return outcome.chosen["kl"]


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_with_distillation_auto_tries_blocks_too_and_is_never_farther_than_none(name: str) -> None:
    case, images = random_case(name, torch.float32), images_for(name, 60)
    before = copy.deepcopy(case.dense.state_dict()), copy.deepcopy(case.result.model.state_dict())
    outcome = repair(case.dense, case.result, [images], RepairOptions(block_steps=6, distill_steps=12))
    expected = [(*pair, norm) for pair in (*VARIANTS, ("blockwise", None)) for norm in ("none", "relative")]
    *tried, distilled = outcome.tried
    assert [(e["compensation"], e["ridge"], e["batch_norm"]) for e in tried] == expected
    assert {entry["distill_steps"] for entry in tried} == {0}
    best = min(tried, key=lambda entry: entry["kl"])
    assert outcome.chosen == distilled == {**best, "distill_steps": 12, "kl": distilled["kl"]}
    assert kl_record(case, outcome, images) <= best["kl"] <= tried[0]["kl"]
    for model, state in zip((case.dense, case.result.model), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert count_hooks(outcome.model) == 0
    assert all(value.grad is None for value in outcome.model.parameters())


@pytest.mark.parametrize("batch_norm", ["none", "auto"])
def test_blocks_by_name_hold_images_back_and_training_counts_its_steps(batch_norm: str) -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", 60)
    options = RepairOptions(compensation="blockwise", batch_norm=batch_norm, block_steps=6)
    assert options.trains
    assert options.holds_back
    outcome = repair(case.dense, case.result, images.split(16), options)
    assert [entry["compensation"] for entry in outcome.tried] == ["blockwise"] * len(options.batch_norms)
    assert outcome.chosen["distill_steps"] == 0
    kl_record(case, outcome, images)


def test_distillation_alone_counts_the_steps_it_had_time_for() -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", 60)
    start = kl_on_held_back(case.dense, case.result.model, images)
    options = RepairOptions(compensation="none", batch_norm="none", distill_steps=50, seconds=1e-6)
    outcome = repair(case.dense, case.result, [images], options)
    assert outcome.chosen["distill_steps"] == 1
    assert [(entry["compensation"], entry["distill_steps"]) for entry in outcome.tried] == [("none", 0), ("none", 1)]
    assert kl_record(case, outcome, images) <= start * 1.0001


def test_training_with_one_seed_gives_one_model() -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", 40)
    options = {"compensation": "blockwise", "block_steps": 5, "distill_steps": 5}
    models = [repair(case.dense, case.result, [images], RepairOptions(**options)).model for _ in range(2)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("number", [1, 3, 4])
def test_fewer_than_five_images_train_and_judge_alike(number: int) -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", number)
    outcome = repair(case.dense, case.result, images.split(1), RepairOptions(block_steps=2, distill_steps=2))
    assert all(math.isfinite(entry["kl"]) for entry in outcome.tried)
    assert outcome.chosen["kl"] <= outcome.tried[0]["kl"]


def test_the_keys_of_a_study_are_options_with_the_same_defaults() -> None:
    section, options = RepairSection(), RepairOptions()
    assert section.model_dump(exclude={"samples"}).items() <= dataclasses.asdict(options).items()
    # What else there is, is no matter of the section: the seed of the study, and what is known of its images.
    assert set(dataclasses.asdict(options)) - set(section.model_dump()) == {"mirror", "seed"}


def test_section_and_options_name_the_same_variants_and_hold_images_back_alike() -> None:
    for field, known in (("compensation", COMPENSATIONS), ("batch_norm", BATCH_NORMS)):
        annotation = RepairSection.model_fields[field].annotation
        assert set(get_args(annotation)) == {"auto", *known}
    for compensation, batch_norm, steps in product(("auto", *COMPENSATIONS), ("auto", *BATCH_NORMS), (0, 3)):
        given = {"compensation": compensation, "batch_norm": batch_norm, "distill_steps": steps}
        section, options = RepairSection(**given), RepairOptions(**given)
        assert section.holds_back == options.holds_back
        assert section.is_on == (
            options.variants != (("none", None),) or options.batch_norm != "none" or options.trains
        )


def test_every_fifth_image_is_held_back() -> None:
    images = torch.arange(12.0).reshape(12, 1)
    working, held = split_images(images.split(5))
    assert torch.cat(held).flatten().tolist() == [4.0, 9.0]
    assert torch.cat(working).flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert max(map(len, working)) == 5
    assert split_images([images[:4]])[1] == []


def test_outputs_that_are_not_finite_are_infinitely_far() -> None:
    reference = torch.zeros(2, 3).log_softmax(1)
    assert divergence(reference, reference) == 0.0
    assert divergence(reference, torch.full((2, 3), float("nan"))) == math.inf


def test_wrong_options_and_missing_images_are_refused() -> None:
    case = random_case("plain", torch.float32)
    images = [images_for("plain", 4)]
    with pytest.raises(PruningError, match="compensation is 'magic'; allowed: auto, none, closed_form"):
        repair(case.dense, case.result, images, RepairOptions(compensation="magic"))
    with pytest.raises(PruningError, match="batch_norm is 'x'; allowed: auto, none, relative, reset"):
        repair(case.dense, case.result, images, RepairOptions(batch_norm="x"))
    with pytest.raises(CalibrationError, match="hold none"):
        repair(case.dense, case.result, [])
    for given, message in (
        ({"block_steps": 0}, "block_steps is 0; allowed: an integer of at least 1"),
        ({"distill_steps": -1}, "distill_steps is -1; allowed: an integer of at least 0"),
        ({"seconds": 0.0}, r"seconds is 0\.0; allowed: None or a number above 0"),
        ({"seconds": math.nan}, "seconds is nan; allowed: None or a number above 0"),
    ):
        with pytest.raises(PruningError, match=message):
            RepairOptions(**given)


def test_half_a_real_network_is_repaired_without_training(fashion_mnist_root: Path, reference_weights: Path) -> None:
    """ResNet-20 on Fashion-MNIST, dense 93 %: half the MACs gone leave 10 to 20 %, repair brings back over 85 %."""
    study = parse_study(
        {
            "model": {"name": "resnet20", "weights": str(reference_weights), "input_shape": [1, 28, 28]},
            "data": {"name": "fashion_mnist"},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        }
    )
    source, dense = open_image_source(study.data, study.model), build_model(study.model)
    calibration = list(batches(source.dataset("train"), range(320), 64))
    test = list(batches(source.dataset("test"), range(500), 250))
    result = cleanai_ray.prune(dense, torch.zeros(1, 1, 28, 28), method="magnitude", budget={"macs": 0.5})
    outcome = repair(dense, result, calibration)
    assert evaluate(result.model, test).accuracy < 0.4
    assert evaluate(outcome.model, test).accuracy > 0.85
