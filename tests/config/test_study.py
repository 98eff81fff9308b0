from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study, Trial, load_study, parse_study
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import METHODS, METRICS

REPOSITORY = Path(__file__).resolve().parents[2]
READERS = ("coverage", "adaptive")
OTHERS = ("wanda", "magnitude", "taylor", "random")
METRIC_NAMES = ("normalized_mean", "frequency", "mean_absolute", "combined")

BASE: dict[str, Any] = {
    "name": "quick",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
    "data": {"name": "digits"},
    "sweep": {"methods": ["coverage", "wanda"], "ratios": [0.3]},
}


def document(**sections: Any) -> dict[str, Any]:
    """The base study with whole sections replaced."""
    return {**copy.deepcopy(BASE), **sections}


def study(**sweep: Any) -> Study:
    return parse_study(document(sweep={**BASE["sweep"], **sweep}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(BASE))
    return file


def subsets(names: tuple[str, ...], min_size: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=min_size, unique=True)


FRACTIONS = st.integers(1, 90).map(lambda percent: percent / 100)
AMOUNTS = st.one_of(
    st.fixed_dictionaries({"ratios": st.lists(FRACTIONS, min_size=1, max_size=3, unique=True)}),
    st.fixed_dictionaries(
        {
            "budgets": st.lists(
                st.builds(lambda key, limit: {key: limit}, st.sampled_from(list(Budget.model_fields)), FRACTIONS),
                min_size=1,
                max_size=3,
                unique_by=lambda budget: tuple(budget.items()),
            )
        }
    ),
)
SWEEPS = st.builds(
    lambda amounts, rest: {**rest, **amounts},
    AMOUNTS,
    st.fixed_dictionaries(
        {
            "methods": subsets(READERS + OTHERS),
            "coverage_metrics": subsets(METRIC_NAMES),
            "modes": subsets(("local", "global")),
            "steps": st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True),
            "seeds": st.lists(st.integers(0, 2**31), min_size=1, max_size=3, unique=True),
        }
    ),
)


class TestExpansion:
    def test_the_grid_of_the_quickstart_is_counted_by_hand(self) -> None:
        sweep = {
            "methods": ["coverage", "wanda", "adaptive", "magnitude", "taylor", "random"],
            "coverage_metrics": list(METRIC_NAMES),
            "ratios": [0.3, 0.5],
            "modes": ["local", "global"],
        }
        # coverage and adaptive: 4 metrics x 2 ratios x 2 modes = 16 each; the four others: 2 x 2 = 4 each.
        trials = study(**sweep).trials()
        assert len(trials) == 2 * 16 + 4 * 4
        assert sum(trial.method == "adaptive" for trial in trials) == 16
        assert sum(trial.method == "random" for trial in trials) == 4

    def test_steps_and_seeds_multiply_every_method(self) -> None:
        trials = study(steps=[1, 5], seeds=[0, 1, 2]).trials()
        # coverage and wanda, one metric, one ratio, one mode: 2 x (2 steps x 3 seeds).
        assert len(trials) == 12
        assert {(trial.steps, trial.seed) for trial in trials if trial.method == "wanda"} == {
            (1, 0), (1, 1), (1, 2), (5, 0), (5, 1), (5, 2),
        }  # fmt: skip

    def test_trials_come_in_the_order_of_the_file(self) -> None:
        trials = study(methods=["wanda", "coverage"], coverage_metrics=["frequency", "combined"], ratios=[0.5, 0.3])
        assert [(trial.label, trial.ratio) for trial in trials.trials()] == [
            ("wanda", 0.5),
            ("wanda", 0.3),
            ("coverage/frequency", 0.5),
            ("coverage/frequency", 0.3),
            ("coverage/combined", 0.5),
            ("coverage/combined", 0.3),
        ]

    def test_budgets_stand_in_for_ratios(self) -> None:
        trials = study(methods=["magnitude"], ratios=[], budgets=[{"macs": 0.5}, {"params": 0.25}]).trials()
        assert [(trial.ratio, str(trial.budget)) for trial in trials] == [(None, "macs=0.5"), (None, "params=0.25")]
        assert [(trial.budget.resource, trial.budget.limit) for trial in trials if trial.budget] == [
            ("macs", 0.5),
            ("params", 0.25),
        ]

    def test_options_reach_the_trials_of_their_method_only(self) -> None:
        trials = study(method_options={"wanda": {"variant": "producer"}}).trials()
        assert {trial.method: trial.options for trial in trials} == {"coverage": {}, "wanda": {"variant": "producer"}}

    def test_options_decide_whether_metrics_multiply_a_method(self) -> None:
        sweep = {"methods": ["hybrid"], "coverage_metrics": ["frequency", "entropy"]}
        assert [trial.coverage_metric for trial in study(**sweep).trials()] == [None]
        trials = study(**sweep, method_options={"hybrid": {"second": "coverage"}}).trials()
        assert [trial.label for trial in trials] == ["hybrid/frequency", "hybrid/entropy"]

    @given(sweep=SWEEPS)
    def test_the_grid_is_the_product_of_its_lists(self, sweep: dict[str, Any]) -> None:
        cells = (
            len(sweep.get("ratios", sweep.get("budgets", [])))
            * len(sweep["modes"])
            * len(sweep["steps"])
            * len(sweep["seeds"])
        )
        readers = sum(name in READERS for name in sweep["methods"])
        rows = readers * len(sweep["coverage_metrics"]) + len(sweep["methods"]) - readers
        trials = parse_study(document(sweep=sweep)).trials()
        assert len(trials) == rows * cells
        for trial in trials:
            assert (trial.coverage_metric is not None) == (trial.method in READERS)


class TestTrialId:
    @given(sweep=SWEEPS)
    def test_ids_are_unique_in_a_study_and_the_same_every_time(self, sweep: dict[str, Any]) -> None:
        first = [trial.trial_id for trial in parse_study(document(sweep=sweep)).trials()]
        again = [
            trial.trial_id for trial in parse_study(yaml.safe_load(yaml.safe_dump(document(sweep=sweep)))).trials()
        ]
        assert first == again
        assert len(set(first)) == len(first)

    @given(sweep=SWEEPS, data=st.data())
    def test_a_cell_keeps_its_id_when_the_sweep_around_it_changes(
        self, sweep: dict[str, Any], data: st.DataObject
    ) -> None:
        trials = parse_study(document(sweep=sweep)).trials()
        trial = data.draw(st.sampled_from(trials))
        alone = {
            "methods": [trial.method],
            "coverage_metrics": [trial.coverage_metric or "frequency"],
            "ratios": [] if trial.ratio is None else [trial.ratio],
            "budgets": [] if trial.budget is None else [trial.budget.items()],
            "modes": [trial.mode],
            "steps": [trial.steps],
            "seeds": [trial.seed],
        }
        (same,) = parse_study(document(sweep=alone)).trials()
        assert same.trial_id == trial.trial_id

    def test_every_field_that_changes_changes_the_id(self) -> None:
        base: dict[str, Any] = {"method": "coverage", "coverage_metric": "frequency", "ratio": 0.3}
        changes: list[dict[str, Any]] = [
            {},
            {"method": "adaptive"},
            {"coverage_metric": "combined"},
            {"ratio": 0.3000001},
            {"ratio": None, "budget": {"macs": 0.3}},
            {"ratio": None, "budget": {"params": 0.3}},
            {"ratio": None, "budget": {"latency": 0.3}},
            {"ratio": None, "budget": {"size_mb": 0.3}},
            {"mode": "global"},
            {"steps": 2},
            {"seed": 1},
            {"calibration_samples": 64},
            {"calibration_seed": 0},
            {"quantization": "int8"},
            {"quantization": "bf16"},
            {"options": {"k": 1}},
            {"options": {"k": 2}},
            {"control": {"kind": "narrow"}},
            {"control": {"kind": "scratch"}},
            {"control": {"kind": "scratch", "compute": "epochs"}},
        ]
        ids = [Trial.model_validate({**base, **change}).trial_id for change in changes]
        assert len(set(ids)) == len(changes)
        assert set(Trial.model_fields) == {key for change in changes for key in change}

    def test_an_id_can_be_read_and_is_a_file_name(self) -> None:
        trial = Trial.model_validate({"method": "coverage", "coverage_metric": "frequency", "ratio": 0.3})
        assert trial.trial_id.rsplit("-", 1)[0] == "coverage-frequency-local-r0.3"
        budget = Trial.model_validate({"method": "wanda", "budget": {"macs": 0.5}, "mode": "global"})
        assert budget.trial_id.rsplit("-", 1)[0] == "wanda-global-macs0.5"
        size = Trial.model_validate({"method": "random", "budget": {"size_mb": 10}})
        assert (size.trial_id.rsplit("-", 1)[0], str(size.budget)) == ("random-local-size_mb10", "size_mb=10")

    def test_a_digest_depends_on_the_value_and_not_on_the_order_of_its_keys(self) -> None:
        assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        assert digest({"a": 1}) != digest({"a": 2})
        assert digest([1, 2]) != digest([2, 1])
        # sha256 of the text {"a":1}, as `printf '{"a":1}' | sha256sum` prints it.
        assert digest({"a": 1}) == "015abd7f5cc57a2d"


class TestYaml:
    @given(sweep=SWEEPS)
    def test_the_resolved_study_is_the_same_study(self, sweep: dict[str, Any]) -> None:
        original = parse_study(document(sweep=sweep))
        again = parse_study(yaml.safe_load(original.to_yaml()))
        assert again == original
        assert again.trials() == original.trials()
        assert again.to_yaml() == original.to_yaml()

    def test_the_resolved_study_names_every_key(self) -> None:
        resolved = yaml.safe_load(parse_study(document()).to_yaml())
        assert list(resolved) == list(Study.model_fields)
        assert resolved["pruning"]["max_ratio"] == 0.9
        assert resolved["finetune"]["weight_decay"] == 1e-4
        assert resolved["sweep"]["steps"] == [1]

    def test_a_small_number_without_a_point_is_a_number(self, path: Path) -> None:
        assert load_study(path, ["finetune.learning_rate=1e-3"]).finetune.learning_rate == 0.001

    def test_a_study_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            parse_study(document()).name = "other"


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "section", "field", "value"),
        [
            ("name=other", None, "name", "other"),
            ("data.batch_size=32", "data", "batch_size", 32),
            ("sweep.ratios=[0.1, 0.2]", "sweep", "ratios", (0.1, 0.2)),
            ("sweep.methods=[random]", "sweep", "methods", ("random",)),
            ("model.train=null", "model", "train", None),
            ("model.train=", "model", "train", None),
            ("evaluation.latency=null", "evaluation", "latency", None),
            ("pruning.layer_ratios={conv1: 0.1}", "pruning", "layer_ratios", {"conv1": 0.1}),
            ("pruning.round_to = 8", "pruning", "round_to", 8),
            ("output.dir=s3://bucket/a=b", "output", "dir", "s3://bucket/a=b"),
        ],
    )
    def test_a_value_is_set(self, path: Path, override: str, section: str | None, field: str, value: Any) -> None:
        study = load_study(path, [override])
        assert getattr(getattr(study, section) if section else study, field) == value

    def test_a_nested_key_leaves_its_neighbours(self, path: Path) -> None:
        study = load_study(path, ["model.train.epochs=7", "data.calibration.samples=64", "model.options.width=8"])
        assert study.model.name == "resnet20"
        assert study.model.train is not None
        assert study.model.train.epochs == 7
        assert study.data.calibration.samples == 64
        assert study.model.options == {"width": 8}

    def test_sections_that_are_absent_or_null_are_made(self, path: Path) -> None:
        study = load_study(path, ["model.train=null", "model.train.epochs=3", "finetune.early_stopping.patience=9"])
        assert study.model.train is not None
        assert study.model.train.epochs == 3
        assert study.finetune.early_stopping is not None
        assert study.finetune.early_stopping.patience == 9

    def test_the_last_of_two_overrides_counts(self, path: Path) -> None:
        assert load_study(path, ["sweep.seeds=[1]", "sweep.seeds=[2]"]).sweep.seeds == (2,)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("sweep.ratios", "--set 'sweep.ratios' is not of the form a.b=c"),
            ("=3", "--set '=3' is not of the form a.b=c"),
            ("sweep..ratios=[0.3]", "--set 'sweep..ratios=[0.3]' is not of the form a.b=c"),
            ("model.name.x=3", "--set model.name.x: 'model.name' is 'resnet20', which has no keys"),
            (
                "sweep.methods.x=3",
                '--set sweep.methods.x: \'sweep.methods\' is ["coverage", "wanda"], which has no keys',
            ),
        ],
    )
    def test_a_malformed_override_is_named(self, path: Path, override: str, message: str) -> None:
        with pytest.raises(StudyError) as caught:
            load_study(path, [override])
        assert str(caught.value) == message

    def test_a_value_that_is_not_yaml_is_named(self, path: Path) -> None:
        with pytest.raises(StudyError, match=r"^--set name: '\[' is not a YAML value: line 1, column 2: [^\n]*$"):
            load_study(path, ["name=["])


@pytest.mark.parametrize("file", sorted(REPOSITORY.glob("jobs/studies/*.yaml")), ids=lambda file: file.stem)
def test_the_studies_that_ship_are_valid(file: Path) -> None:
    study = load_study(file)
    assert study.name == file.stem
    assert len(study.trials()) > 0
    assert file.read_text().lstrip().startswith("#"), "each study file says in a comment what it costs"


def test_the_names_used_here_are_registered() -> None:
    assert set(READERS + OTHERS) <= set(METHODS.names())
    assert set(METRIC_NAMES) <= set(METRICS.names())


class TestDraws:
    """A study may sweep the number and the seed of its calibration samples."""

    def drawn(self, **calibration: Any) -> Study:
        return parse_study(document(data={"name": "digits", "calibration": calibration}))

    def test_every_draw_is_a_trial_of_each_cell(self) -> None:
        trials = self.drawn(samples=[64, 256], seed=[0, 3]).trials()
        found = [(trial.label, trial.calibration_samples, trial.calibration_seed) for trial in trials]
        draws = [(64, 0), (64, 3), (256, 0), (256, 3)]
        assert found == [(label, *draw) for label in ("coverage/normalized_mean", "wanda") for draw in draws]
        assert len({trial.trial_id for trial in trials}) == 8
        assert trials[5].trial_id.startswith("wanda-local-r0.3-n64-draw3-")

    def test_what_is_not_swept_is_not_in_a_trial(self) -> None:
        both = [(trial.calibration_samples, trial.calibration_seed) for trial in self.drawn(samples=[64, 256]).trials()]
        assert both == [(64, None), (256, None)] * 2
        seeds = [(trial.calibration_samples, trial.calibration_seed) for trial in self.drawn(seed=[0, 1]).trials()]
        assert seeds == [(None, 0), (None, 1)] * 2
        assert "-draw1-" in self.drawn(seed=[0, 1]).trials()[1].trial_id

    def test_a_trial_of_one_draw_keeps_its_identity(self) -> None:
        """Its digest is over the fields that it has always had, so that old results count."""
        (trial,) = study(methods=["wanda"]).trials()
        fields = ("method", "coverage_metric", "ratio", "budget", "mode", "steps", "seed", "options")
        assert trial.trial_id == f"wanda-local-r0.3-{digest({name: getattr(trial, name) for name in fields})[:8]}"
        assert self.drawn(samples=[128], seed=[2]) == self.drawn(samples=128, seed=2)

    def test_a_study_of_one_draw_is_as_if_it_were_the_only_one(self) -> None:
        swept = self.drawn(samples=[64, 256], seed=[0, 3])
        assert [swept.draw_of(trial).name for trial in swept.trials()[:4]] == [draw.name for draw in swept.draws()]
        assert swept.of_draw(swept.draws()[3]) == self.drawn(samples=256, seed=3)

    def test_random_scores_follow_the_seed_of_the_draw_and_not_its_size(self) -> None:
        trials = self.drawn(samples=[64, 256], seed=[0, 3]).trials()[:4]
        first, second, third, fourth = (trial.scoring_seed for trial in trials)
        assert first == third != second == fourth
        assert [trial.scoring_seed for trial in study(seeds=[0, 7]).trials()[:2]] == [0, 7]

    @pytest.mark.parametrize(
        ("calibration", "parts"),
        [
            ({"samples": [64, 64]}, ["data.calibration.samples", "64 twice"]),
            ({"seed": [1, 0, 1]}, ["data.calibration.seed", "1 twice"]),
            ({"samples": []}, ["data.calibration.samples", "[]"]),
            ({"samples": [64, 0]}, ["data.calibration.samples", "0"]),
            ({"seed": [-1]}, ["data.calibration.seed", "-1"]),
            ({"precision": "float16"}, ["data.calibration.precision", "float16", "float32", "bfloat16"]),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, calibration: dict[str, Any], parts: list[str]) -> None:
        with pytest.raises(StudyError) as raised:
            self.drawn(**calibration)
        for part in parts:
            assert part in str(raised.value)
