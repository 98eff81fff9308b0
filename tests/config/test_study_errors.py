"""Errors in a study file are reported in one sentence: the field, the value and what is allowed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.config.study import Study, load_study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import DATASETS, METHODS, METRICS

BASE = """
name: quick
model: {name: resnet20, num_classes: 10, input_shape: [1, 8, 8], train: {epochs: 2}}
data: {name: digits}
sweep: {methods: [coverage, wanda], ratios: [0.3]}
"""
TRAIN = "epochs, batch_size, optimizer, learning_rate, weight_decay, precision, seed"
NO_RATIOS = "sweep.ratios=[]"
OPEN = "a number above 0 and below 1"
INTEGER = "an integer of at least 1"
BUDGETS = "macs, params, latency, size_mb"
LABELLED = ["allowed: finetune.distillation.weight 1", "finetune.data 'training'"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(BASE)
    return file


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        load_study(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # numbers
        (["sweep.ratios=[1.5]"], f"sweep.ratios[0] is 1.5; allowed: {OPEN}"),
        (["sweep.ratios=[0.1, 0]"], f"sweep.ratios[1] is 0; allowed: {OPEN}"),
        (["sweep.ratios=[much]"], f"sweep.ratios[0] is 'much'; allowed: {OPEN}"),
        (["sweep.ratios=0.3"], f"sweep.ratios is 0.3; allowed: a list, each entry {OPEN}"),
        (["sweep.ratios=[.nan]"], "sweep.ratios[0] is NaN; allowed: a finite number above 0 and below 1"),
        (["sweep.steps=[0]"], f"sweep.steps[0] is 0; allowed: {INTEGER}"),
        (["sweep.steps=[1.5]"], f"sweep.steps[0] is 1.5; allowed: {INTEGER}"),
        (["sweep.seeds=[-1]"], "sweep.seeds[0] is -1; allowed: an integer of at least 0"),
        (["data.batch_size=many"], f"data.batch_size is 'many'; allowed: {INTEGER}"),
        (["model.num_classes=null"], f"model.num_classes is null; allowed: {INTEGER}"),
        (["model.train.epochs=0"], f"model.train.epochs is 0; allowed: {INTEGER}"),
        (["evaluation.latency.runs=2"], "evaluation.latency.runs is 2; allowed: an integer of at least 5"),
        (["finetune.learning_rate=.inf"], "finetune.learning_rate is Infinity; allowed: a finite number above 0"),
        (["finetune.label_smoothing=1"], "finetune.label_smoothing is 1; allowed: a number of at least 0 and below 1"),
        (["finetune.gradient_clip=0"], "finetune.gradient_clip is 0; allowed: null or a number above 0"),
        (["pruning.layer_ratios={conv1: 2}"], f"pruning.layer_ratios.conv1 is 2; allowed: {OPEN}"),
        (
            ["data.transform.resize=0"],
            f"data.transform.resize is 0; allowed: null or {INTEGER} or a list of 2 entries, each {INTEGER}",
        ),
        (["data.transform.std=[0.2, 0, 0.2]"], "data.transform.std[1] is 0; allowed: a number above 0"),
        (
            ["data.transform.mean=0.5"],
            "data.transform.mean is 0.5; allowed: null or a list of at least 1 entry, each entry a number",
        ),
        # unions, choices, texts
        (
            ["data.transform.interpolation=area"],
            "data.transform.interpolation is 'area'; allowed: null or 'nearest' or 'bilinear' or 'bicubic'",
        ),
        (
            ["data.transform.rescale=3"],
            "unknown key 'data.transform.rescale'; did you mean 'resize'? "
            "allowed: resize, crop, interpolation, mean, std, train_area, train_mirror",
        ),
        (["resources.calibration_actors=0"], f"resources.calibration_actors is 0; allowed: 'auto' or {INTEGER}"),
        (
            ["resources.max_concurrent_trials=x"],
            f"resources.max_concurrent_trials is 'x'; allowed: 'auto' or {INTEGER}",
        ),
        (
            ["data.calibration.withhold_from_training=3"],
            "data.calibration.withhold_from_training is 3; allowed: 'auto' or true or false",
        ),
        (["pruning.round_to=x"], f"pruning.round_to is 'x'; allowed: null or 'auto' or {INTEGER}"),
        (
            ["evaluation.latency.backends=[eager, tvm]"],
            "evaluation.latency.backends[1] is 'tvm'; allowed: 'eager' or 'compile' or 'onnxruntime'",
        ),
        (
            ["sweep.quantization=[none, int4]"],
            "sweep.quantization[1] is 'int4'; allowed: 'none' or 'int8' or 'bf16'",
        ),
        (["finetune.optimizer=adam"], "finetune.optimizer is 'adam'; allowed: 'sgd' or 'adamw'"),
        (["output.save_models=false"], "output.save_models is false; allowed: 'none' or 'best' or 'front' or 'all'"),
        (
            ["data.calibration.observe=raw"],
            "data.calibration.observe is 'raw'; allowed: 'activation' or 'output'",
        ),
        (["data.calibration.allow_overlap=7"], "data.calibration.allow_overlap is 7; allowed: true or false"),
        (
            ["evaluation.precision=int8"],
            "evaluation.precision is 'int8'; allowed: 'float32' or 'bfloat16' or 'float16'",
        ),
        (["name=a b"], "name is 'a b'; allowed: text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$"),
        (["output.dir="], "output.dir is null; allowed: text that is not empty"),
        (["question=3"], "question is 3; allowed: text"),
        # lists and mappings
        (["sweep.methods=[]"], "sweep.methods is []; allowed: a list of at least 1 entry, each entry text"),
        (["sweep.methods=wanda"], "sweep.methods is 'wanda'; allowed: a list of at least 1 entry, each entry text"),
        (["sweep.methods=[1]"], "sweep.methods[0] is 1; allowed: text"),
        (["model.input_shape=[1, 8]"], "model.input_shape is [1, 8]; allowed for task classification: 3 numbers"),
        (
            ["model.input_shape=[1, 8, 8, 8]"],
            "model.input_shape is [1, 8, 8, 8]; allowed for task classification: 3 numbers",
        ),
        (["model.input_shape=[1, 8, 0]"], f"model.input_shape[2] is 0; allowed: {INTEGER}"),
        (["model.train=3"], f"model.train is 3; allowed: null or a mapping with keys among {TRAIN}"),
        (["model.options=3"], "model.options is 3; allowed: a mapping"),
        (["pruning.layer_ratios={1: 0.5}"], "pruning.layer_ratios has a key that is 1; allowed: text"),
        (["plugins=mine"], "plugins is 'mine'; allowed: a list, each entry text"),
        # budgets
        (
            [NO_RATIOS, "sweep.budgets=[{macs: 1.5}]"],
            "sweep.budgets[0].macs is 1.5; allowed: null or a number above 0 and at most 1",
        ),
        (
            [NO_RATIOS, "sweep.budgets=[{latency: 0}]"],
            "sweep.budgets[0].latency is 0; allowed: null or a number above 0 and at most 1",
        ),
        (
            [NO_RATIOS, "sweep.budgets=[{size_mb: 0}]"],
            "sweep.budgets[0].size_mb is 0; allowed: null or a number above 0",
        ),
        (["sweep.ratios=[0.95]"], "sweep.ratios holds 0.95; allowed: at most pruning.max_ratio, 0.9"),
        (
            ["pruning.max_ratio=0.25"],
            "sweep.ratios holds 0.3; allowed: at most pruning.max_ratio, 0.25",
        ),
        (
            [NO_RATIOS],
            "sweep.ratios and sweep.budgets are both empty; needed: entries in exactly one of them",
        ),
        (
            ["sweep.budgets=[{macs: 0.5}]"],
            "sweep.ratios starts with 0.3 and sweep.budgets with macs=0.5; allowed: entries in one of them",
        ),
        # values that are listed twice
        (["sweep.ratios=[0.3, 0.5, 0.3]"], "sweep.ratios holds 0.3 twice; allowed: each value once"),
        (["sweep.quantization=[int8, int8]"], "sweep.quantization holds int8 twice; allowed: each value once"),
        (["sweep.methods=[wanda, wanda]"], "sweep.methods holds wanda twice; allowed: each value once"),
        (
            [NO_RATIOS, "sweep.budgets=[{macs: 0.5}, {macs: 0.5}]"],
            "sweep.budgets holds macs=0.5 twice; allowed: each value once",
        ),
        (
            ["sweep.coverage_metrics=[]"],
            "sweep.coverage_metrics is []; allowed: at least one entry, which coverage needs",
        ),
        (
            ["sweep.method_options={wanda: {variant: both}}"],
            "sweep.method_options.wanda: variant is 'both'; allowed: consumer, producer",
        ),
        (
            ["sweep.method_options={coverage: {metric: apoz}}"],
            "sweep.method_options.coverage: Coverage() takes no arguments; allowed: no options",
        ),
        (
            ["sweep.methods=[hybrid]", "sweep.method_options={hybrid: {first: magnitude}}"],
            "sweep.method_options.hybrid: first and second are both 'magnitude'; allowed: two different methods",
        ),
        (
            ["sweep.method_options={magnitude: {p: 1}}"],
            "sweep.method_options: 'magnitude' is not among sweep.methods; allowed: coverage, wanda",
        ),
    ],
)
def test_a_wrong_value_is_answered_with_the_field_the_value_and_what_is_allowed(
    path: Path, overrides: list[str], message: str
) -> None:
    assert message_of(path, *overrides) == f"study: {message}"


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (
            [NO_RATIOS, "sweep.budgets=[{size_mb: 9}, {latency: 0.6}]", "evaluation.latency=null"],
            ["evaluation.latency is null", "sweep.budgets", "latency=0.6"],
        ),
        (["model.name=null"], ["model.name", "model.factory", "null", "exactly one"]),
        (["model.factory=mine:build"], ["model.name is 'resnet20'", "model.factory is 'mine:build'", "one of them"]),
        (["model.name=null", "model.factory=mine"], ["model.factory is 'mine'", "package.module:function"]),
        (["model.name=null", "model.factory='mine:'"], ["model.factory is 'mine:'", "package.module:function"]),
        (
            ["data.calibration.split=test"],
            ["data.calibration.split is 'test'", "evaluation", "another split", "data.calibration.allow_overlap: true"],
        ),
        (
            ["evaluation.validation={}", "evaluation.validation_share=0.3"],
            ["evaluation.validation_share is 0.3", "evaluation.validation is given", "one of the two"],
        ),
        (
            ["evaluation.validation={split: test}"],
            ["evaluation.validation.split is 'test'", "reported on", "another one, for instance train"],
        ),
        (
            ["finetune.between_steps=2"],
            ["finetune.between_steps is 2", "sweep.steps [1]", "allowed: 0, or an entry of sweep.steps above 1"],
        ),
        (
            [NO_RATIOS, "sweep.budgets=[{latency: 0.6}]", "sweep.steps=[1, 3]", "finetune.between_steps=1"],
            ["finetune.between_steps is 1", "sweep.budgets holds latency=0.6", "allowed: 0, or other budgets"],
        ),
        (
            ["finetune.data=calibration"],
            ["finetune.data is 'calibration'", "label", "finetune.distillation is null", *LABELLED],
        ),
        (
            ["finetune.data=calibration", "finetune.distillation={weight: 0.9}"],
            ["finetune.data is 'calibration'", "label", "finetune.distillation.weight is 0.9", *LABELLED],
        ),
        (
            ["finetune={data: calibration, distillation: {weight: 1}}", "data.calibration.samples=[64, 4]"],
            ["finetune.data is 'calibration' with 4 samples", "finetune.num_workers 1", "at least 5 samples", "5th"],
        ),
        (
            ["finetune={data: calibration, distillation: {weight: 1}, num_workers: 8}", "data.calibration.samples=39"],
            ["finetune.data is 'calibration' with 39 samples", "finetune.num_workers 8", "at least 40 samples", "5th"],
        ),
    ],
)
def test_values_that_do_not_go_together_are_named_with_what_is_allowed(
    path: Path, overrides: list[str], facts: list[str]
) -> None:
    message = message_of(path, *overrides)
    assert message.startswith("study: ")
    assert [fact for fact in facts if fact not in message] == []


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("modle={}", "modle", "model"),
        ("model.weigths=x", "model.weigths", "weights"),
        ("model.train.epoch=3", "model.train.epoch", "epochs"),
        ("data.calibration.spilt=train", "data.calibration.spilt", "split"),
        ("evaluation.latency.batch_size=[1]", "evaluation.latency.batch_size", "batch_sizes"),
        ("finetune.early_stopping.patients=3", "finetune.early_stopping.patients", "patience"),
        ("finetune.distillation.temprature=3", "finetune.distillation.temprature", "temperature"),
        ("sweep.budgets=[{mac: 0.5}]", "sweep.budgets[0].mac", "macs"),
        ("resources.gpu_per_trial=1", "resources.gpu_per_trial", "gpus_per_trial"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(
    path: Path, override: str, key: str, meant: str
) -> None:
    message = message_of(path, override)
    assert message.startswith(f"study: unknown key '{key}'; did you mean '{meant}'? allowed: ")
    assert meant in message.rpartition("allowed: ")[2].split(", ")


def test_an_unknown_key_like_no_other_is_answered_with_the_known_ones(path: Path) -> None:
    assert message_of(path, "model.train.zzz=1") == f"study: unknown key 'model.train.zzz'; allowed: {TRAIN}"


def test_a_misspelt_key_is_named_before_the_key_that_it_leaves_missing() -> None:
    document = yaml.safe_load(BASE)
    document["sweep"]["method"] = document["sweep"].pop("methods")
    with pytest.raises(StudyError, match=r"unknown key 'sweep\.method'; did you mean 'methods'\?"):
        parse_study(document)


@pytest.mark.parametrize("budget", ["{macs: 0.5, params: 0.4}", "{}"])
def test_a_budget_limits_one_thing(path: Path, budget: str) -> None:
    message = message_of(path, NO_RATIOS, f"sweep.budgets=[{{macs: 0.9}}, {budget}]")
    found = "macs and params" if "macs" in budget else "nothing"
    assert message == f"study: sweep.budgets[1]: the budget limits {found}; allowed: exactly one of {BUDGETS}"


@pytest.mark.parametrize(
    ("override", "field", "kind", "names"),
    [
        ("sweep.methods=[wanda, coverag]", "sweep.methods: 'coverag'", "method", METHODS),
        ("sweep.coverage_metrics=[frequenzy]", "sweep.coverage_metrics: 'frequenzy'", "coverage metric", METRICS),
        ("data.name=digit", "data.name: 'digit'", "data set", DATASETS),
    ],
)
def test_an_unknown_name_is_answered_with_the_registered_ones(
    path: Path, override: str, field: str, kind: str, names: object
) -> None:
    known = names.names()  # type: ignore[attr-defined]
    meant = {"method": "coverage", "coverage metric": "frequency", "data set": "digits"}[kind]
    assert message_of(path, override) == (
        f"study: {field} is not a {kind}; did you mean '{meant}'? allowed: {', '.join(known)}"
    )


@pytest.mark.parametrize("section", ["model", "data", "sweep"])
def test_a_missing_section_is_named(section: str) -> None:
    document = yaml.safe_load(BASE)
    del document[section]
    with pytest.raises(StudyError, match=f"^study: {section} is missing; needed: a mapping with keys among "):
        parse_study(document)


def test_a_missing_key_is_named() -> None:
    document = yaml.safe_load(BASE)
    del document["sweep"]["methods"]
    with pytest.raises(StudyError) as caught:
        parse_study(document)
    assert str(caught.value) == "study: sweep.methods is missing; needed: a list of at least 1 entry, each entry text"


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ("", "is empty"),
            ("# only a comment\n", "is empty"),
            ("- model\n- data\n", 'is ["model", "data"]'),
            ("quickstart", "is 'quickstart'"),
        ],
    )
    def test_a_file_without_sections_is_refused(self, tmp_path: Path, content: str, found: str) -> None:
        file = tmp_path / "study.yaml"
        file.write_text(content)
        expected = f"study file '{file}' {found}; needed: a mapping with at least model, data and sweep"
        assert message_of(file) == expected

    def test_a_file_that_is_not_yaml_is_refused_with_the_place(self, tmp_path: Path) -> None:
        file = tmp_path / "study.yaml"
        file.write_text("name: quick\nmodel: {name: resnet20\ndata: {}\n")
        message = message_of(file)
        assert message.startswith(f"study file '{file}' is not YAML: line 3, column ")
        assert "\n" not in message

    def test_yaml_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "study.yaml"
        file.write_text("name: !!python/object/apply:os.getcwd []\n")
        assert message_of(file).startswith(f"study file '{file}' is not YAML: line 1, column 7: ")

    def test_a_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "study.yaml"
        file.write_bytes(b"\xff\xfe\x00name")
        assert message_of(file).startswith(f"study file '{file}' cannot be read: ")

    def test_a_file_that_is_missing_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "absent.yaml"
        assert message_of(file) == f"study file '{file}' cannot be read: No such file or directory"

    def test_a_folder_is_not_a_study(self, tmp_path: Path) -> None:
        assert message_of(tmp_path) == f"study file '{tmp_path}' cannot be read: Is a directory"


class TestPlugins:
    def test_a_module_that_does_not_exist_is_named(self, path: Path) -> None:
        message = message_of(path, "plugins=[no_such_plugin]")
        assert message == "plugins: module 'no_such_plugin' cannot be imported: No module named 'no_such_plugin'"

    def test_something_that_is_not_a_name_is_refused(self, path: Path) -> None:
        assert message_of(path, "plugins=[3]") == "study: plugins[0] is 3; allowed: text"

    def test_what_a_plugin_registers_can_be_named(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "of_a_plugin" not in METRICS.names()
        for attribute in ("_values", "_summaries"):
            monkeypatch.setattr(METRICS, attribute, getattr(METRICS, attribute).copy())
        (tmp_path / "plugin_of_a_metric.py").write_text(
            "from cleanai_ray.registry import METRICS\n\n"
            '@METRICS.register("of_a_plugin")\nclass Metric:\n    """Constant."""\n'
        )
        monkeypatch.syspath_prepend(tmp_path)
        try:
            study = load_study(path, ["plugins=[plugin_of_a_metric]", "sweep.coverage_metrics=[of_a_plugin]"])
            assert study.trials()[0].label == "coverage/of_a_plugin"
        finally:
            sys.modules.pop("plugin_of_a_metric", None)


FIELDS = [
    (section, field)
    for section in ("model", "data", "sweep", "pruning", "repair", "finetune", "evaluation", "resources", "output")
    for field in Study.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_anywhere_is_accepted_or_refused_in_one_sentence(place: tuple[str, str], value: object) -> None:
    section, field = place
    document = yaml.safe_load(BASE)
    document.setdefault(section, {})[field] = value
    try:
        parse_study(document)
    except StudyError as error:
        message = str(error)
        assert section in message
        assert message.splitlines() == [message]
        assert "allowed: " in message or "needed: " in message
        assert not any(
            word in message.lower() for word in ("constrained", "function-", "literal[", "tuple", "input should")
        )
