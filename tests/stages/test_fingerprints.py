"""Digests of inputs: what changes an output changes its key, and what does not, does not."""

from __future__ import annotations

import copy

import pytest
from source_models import write_hf_resnet

from cleanai_ray.config.digests import digest
from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.models import TorchvisionFamily
from cleanai_ray.stages import fingerprints
from cleanai_ray.stages.fingerprints import (
    blocks_key,
    calibration_key,
    data_key,
    dense_key,
    dense_weights_key,
    moments_key,
    profile_key,
    trial_key,
)

STUDY = {
    "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
    "data": {"name": "digits"},
    "sweep": {"methods": ["coverage"], "ratios": [0.3]},
}

LATER = {"weights_key", "output", "expected_accuracy"}
"""Keys of the section on the model that came later: left out, the others give the digests that they gave before."""


def keys(path: str | None = None, value: object = None) -> dict[str, str]:
    """The keys of the study, with one key of it changed."""
    document = copy.deepcopy(STUDY)
    if path is not None:
        *parents, leaf = path.split(".")
        section = document
        for name in parents:
            section = section.setdefault(name, {})
        section[leaf] = value
    study = parse_study(document)
    return {
        "dense": dense_key(study),
        "calibration": calibration_key(study, "weights"),
        "moments": moments_key(study, "weights"),
        "trial": trial_key(study, study.trials()[0], "weights"),
    }


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("model.input_shape", [1, 16, 16], {"dense", "calibration", "trial"}),
        ("model.output", "logits", {"dense", "calibration", "moments", "trial"}),
        ("model.weights_key", "ema", {"dense"}),
        ("model.expected_accuracy", 0.5, set()),
        ("data.cache", None, set()),
        ("data.cache", {"folder": "/elsewhere", "max_bytes": 1}, set()),
        ("data.decoder", "auto", set()),
        ("data.decoder", "cpu", {"dense", "calibration", "moments", "trial"}),
        ("data.batch_size", 64, {"dense", "calibration", "trial"}),
        ("data.calibration.threshold", 0.1, {"dense", "calibration", "trial"}),
        ("data.transform", {"mean": [0.5]}, {"dense", "calibration", "trial"}),
        ("data.transform", {"resize": 9}, {"dense", "calibration", "trial"}),
        ("data.path", "owner/set", {"dense", "calibration", "trial"}),
        ("data.options", {"revision": "0" * 40}, {"dense", "calibration", "trial"}),
        ("data.options", {"cache_dir": "elsewhere", "index_cache": False}, set()),
        ("data.calibration.precision", "bfloat16", {"calibration", "moments", "trial"}),
        ("sweep.coverage_metrics", ["entropy"], {"calibration", "trial"}),
        ("sweep.coverage_metrics", ["apoz"], {"trial"}),
        ("evaluation.samples", 100, {"dense", "trial"}),
        ("evaluation.sampling", "first", set()),  # of all images
        ("evaluation.validation", None, set()),
        ("evaluation.validation", {}, {"dense", "calibration", "moments", "trial"}),
        ("evaluation.precision", "bfloat16", {"dense", "trial"}),
        ("evaluation.precision", "float32", set()),
        ("sweep.methods", ["taylor"], {"calibration", "trial"}),
        ("sweep.methods", ["hessian"], {"calibration", "trial"}),
        ("sweep.methods", ["hybrid"], {"trial"}),
        ("repair.compensation", "none", {"trial"}),
        ("finetune.epochs", 1, {"trial"}),
        ("pruning.round_to", 8, {"trial"}),
        ("output.dir", "elsewhere", set()),
        ("resources.max_concurrent_trials", 1, set()),
    ],
)
def test_a_key_follows_its_inputs(path, value, changed):
    before, after = keys(), keys(path, value)
    found = {name for name in before if before[name] != after[name]}
    is_read = bool(changed) and path.startswith(("data.", "model.")) and path != "model.weights_key"
    assert found == changed | ({"moments"} if is_read else set())


def test_the_way_that_scored_images_are_drawn_counts_where_not_all_are_scored():
    def found(**evaluation: object) -> set[str]:
        study = parse_study({**STUDY, "evaluation": {"latency": None, **evaluation}})
        return {data_key(study), dense_key(study), trial_key(study, study.trials()[0], "weights")}

    assert not found(samples=100) & found(samples=100, sampling="first")
    assert found() == found(sampling="first")


def test_trained_weights_follow_whatever_decides_how_many_samples_of_another_split_choose():
    def found(**evaluation: object) -> str:
        document = {**STUDY, "model": {**STUDY["model"], "train": {"epochs": 1}}, "evaluation": evaluation}
        return dense_weights_key(parse_study(document))

    chosen = {"split": "train"}
    of_number = [found(split="val", validation=chosen), found(validation=chosen), found(samples=9, validation=chosen)]
    assert len(set(of_number)) == 3, "as many choose as are reported on"
    chosen = {"split": "train", "samples": 50}
    assert found(split="val", validation=chosen) == found(validation=chosen) == found(samples=9, validation=chosen)
    assert found(split="val") == found() == found(samples=9), "none is taken from the training"


def test_scores_of_a_tenth_of_a_split_are_not_those_of_the_whole_split():
    """Once, at most a tenth of a split without training chose, too: what was written then says null."""
    study = parse_study({**STUDY, "evaluation": {"latency": None, "validation": {"split": "val"}}})
    written = study.evaluation.model_dump(mode="json")
    assert written["validation"]["samples"] is None
    assert fingerprints._evaluation(study)["validation"]["samples"] is not None
    fewer = parse_study({**STUDY, "evaluation": {"validation": {"split": "train"}}})
    assert fingerprints._evaluation(fewer)["validation"]["samples"] is None


def test_the_first_images_keep_the_keys_that_they_had_before_there_was_a_draw():
    study = parse_study({**STUDY, "evaluation": {"samples": 100, "sampling": "first"}})
    data = study.data.model_dump(
        exclude={"num_workers": True, "skip_unreadable": True, "cache": True, "path": True, "decoder": True}
    )
    del data["transform"], data["calibration"]["precision"], data["calibration"]["disjoint"]
    model = study.model.model_dump(exclude={"weights", "train", *LATER})
    assert data_key(study) == digest([model, data, "test", 100])
    disjoint = {**STUDY["data"], "calibration": {**STUDY["data"].get("calibration", {}), "disjoint": True}}
    assert data_key(parse_study({**STUDY, "data": disjoint})) != data_key(parse_study(STUDY))


def test_the_files_of_a_folder_that_weights_come_from_count(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    write_hf_resnet(tmp_path)
    study = parse_study({**STUDY, "model": {"name": f"hf:{tmp_path}"}})
    alone = parse_study({**STUDY, "model": {"name": f"hf:{tmp_path}", "weights": None}})
    before, random_before = dense_key(study), dense_key(alone)
    assert dense_key(study) == before
    write_hf_resnet(tmp_path, seed=1)
    assert dense_key(study) != before
    assert dense_key(alone) == random_before


def test_epochs_between_steps_count_in_the_trials_that_have_them():
    found = []
    for epochs in (0, 1, 2):
        document = {**STUDY, "sweep": {**STUDY["sweep"], "steps": [1, 3]}, "finetune": {"between_steps": epochs}}
        study = parse_study(document)
        found.append([trial_key(study, trial, "weights") for trial in study.trials()])
    single, several = zip(*found, strict=True)
    assert len(set(single)) == 1
    assert len(set(several)) == 3


def test_what_is_learned_from_counts():
    found = set()
    for data in ("training", "calibration"):
        finetune = {"epochs": 1, "data": data, "distillation": {"weight": 1.0}}
        study = parse_study({**STUDY, "finetune": finetune})
        found.add(trial_key(study, study.trials()[0], "weights"))
    assert len(found) == 2


def test_a_weights_file_counts_by_its_content(tmp_path):
    file = tmp_path / "weights.safetensors"
    found = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        found.append(keys("model.weights", str(file))["dense"])
        assert keys("model.weights", f"file://{file}")["dense"] != keys("model.weights", None)["dense"]
    assert found[0] == found[2] != found[1]


def test_a_draw_among_several_has_the_keys_of_a_study_of_its_own():
    swept = copy.deepcopy(STUDY) | {"data": {"name": "digits", "calibration": {"samples": [64, 256], "seed": [0, 1]}}}
    study = parse_study(swept)
    assert len({trial_key(study, trial, "weights") for trial in study.trials()}) == 4
    for draw in study.draws():
        own = keys("data.calibration", {"samples": draw.samples, "seed": draw.seed})
        assert calibration_key(study.of_draw(draw), "weights") == own["calibration"]
        assert moments_key(study.of_draw(draw), "weights") == moments_key(parse_study(study_with(draw)), "weights")
    # Another draw beside it changes nothing for a trial, unless images of all draws are kept out of its fine-tuning.
    fewer = parse_study(swept | {"data": {"name": "digits", "calibration": {"samples": [64, 256], "seed": [0, 1, 2]}}})
    trial = study.trials()[0]
    assert trial in fewer.trials()
    assert trial_key(fewer, trial, "weights") == trial_key(study, trial, "weights")
    tuned = [one.model_copy(update={"finetune": FineTuneSection(epochs=1)}) for one in (study, fewer)]
    assert trial_key(tuned[0], trial, "weights") != trial_key(tuned[1], trial, "weights")


def study_with(draw):
    """The study of one draw, as a document."""
    return copy.deepcopy(STUDY) | {
        "data": {"name": "digits", "calibration": {"samples": draw.samples, "seed": draw.seed}}
    }


def test_a_choice_that_older_studies_did_not_have_keeps_their_dense_model() -> None:
    def key(**train: object) -> str:
        return dense_key(parse_study({**STUDY, "model": {**STUDY["model"], "train": {"epochs": 3, **train}}}))

    assert key() == key(optimizer="sgd") != key(optimizer="adamw")
    assert key() == key(precision="auto") != key(precision="bfloat16")
    # The digest of these sections as they were before there was a choice of the optimizer and of the precision.
    study = parse_study({**STUDY, "model": {**STUDY["model"], "train": {"epochs": 3}}})
    model, evaluation = study.model.model_dump(exclude=LATER), {"split": "test", "samples": None}
    model["train"] = {"epochs": 3, "batch_size": None, "learning_rate": 0.1, "weight_decay": 5e-4, "seed": 0}
    younger = dict.fromkeys(("num_workers", "skip_unreadable", "cache", "path", "transform", "decoder"), True)
    data = study.data.model_dump(exclude={**younger, "calibration": {"precision", "disjoint"}})
    assert data["options"] == {}
    assert key() == digest([model, None, data, evaluation])


def test_the_preprocessing_of_pretrained_weights_counts(monkeypatch) -> None:
    def found() -> dict[str, str]:
        study = parse_study({**STUDY, "model": {"name": "efficientnet_b4", "weights": "pretrained"}})
        trial = trial_key(study, study.trials()[0], "weights")
        moments, data = moments_key(study, "weights"), data_key(study)
        calibration = calibration_key(study, "weights")
        return {"dense": dense_key(study), "calibration": calibration, "moments": moments, "trial": trial, "data": data}

    bicubic = found()
    nearest = TransformSection(resize=384, crop=380, interpolation="nearest", mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(TorchvisionFamily, "published_transform", lambda self: nearest)
    assert all(bicubic[name] != key for name, key in found().items())


@pytest.mark.parametrize(
    ("model", "task", "moved"),
    [
        ({"name": "resnet20"}, {}, set()),
        ({"name": "resnet20"}, {"name": "detection"}, {"calibration", "moments", "blocks"}),
        ({"name": None, "factory": "small_nets:build"}, {}, {"calibration", "moments", "blocks", "profile"}),
    ],
)
def test_what_was_measured_of_layers_and_outputs_as_they_once_were_is_measured_anew(
    model: dict[str, object], task: dict[str, object], moved: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = parse_study(STUDY)
    section, purpose = study.model.model_copy(update=model), study.task.model_copy(update=task)
    study = study.model_copy(update={"model": section, "task": purpose})

    def found() -> dict[str, str]:
        measured = {"calibration": calibration_key, "moments": moments_key, "blocks": blocks_key}
        return {name: key(study, "weights") for name, key in measured.items()} | {"profile": profile_key(study)}

    now = found()
    monkeypatch.setattr(fingerprints, "_later", lambda study: [])
    monkeypatch.setattr(fingerprints, "_opened", lambda study: [])
    assert {name for name, key in found().items() if now[name] != key} == moved
