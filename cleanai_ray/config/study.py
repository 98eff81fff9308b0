"""A study: one typed YAML file, loaded, overridden, validated and expanded into trials."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.control_trials import check_controls, control_trials
from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.messages import describe, name_among, show
from cleanai_ray.config.numerics import NumericsSection
from cleanai_ray.config.overrides import apply_override, yaml_problem
from cleanai_ray.config.own_directory import in_own_directory
from cleanai_ray.config.questions import QuestionsSection
from cleanai_ray.config.recommend import RecommendSection
from cleanai_ray.config.sections import (
    HELD_BACK,
    DataSection,
    ModelSection,
    OutputSection,
    PruningSection,
    RepairSection,
    ResourcesSection,
    Section,
)
from cleanai_ray.config.sweep import Budget, SweepSection, uses_coverage_metric
from cleanai_ray.config.switched_off import without_nulls
from cleanai_ray.config.task import TaskSection, check_task
from cleanai_ray.config.tracking import TrackingSection
from cleanai_ray.config.trial import Trial
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import DATASETS, METHODS, METRICS, load_plugins

__all__ = ["Study", "Trial", "load_study", "parse_study"]

_LEAST_SHARE = 16  # Images of a batch that a worker gets where the number is `auto`: batch norm needs some.


class Study(Section):
    """The whole study file."""

    name: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name in reports and dashboards.")
    question: str = Field("", description="The question that the study asks; printed on the report's cover.")
    task: TaskSection = Field(default_factory=lambda: TaskSection())
    model: ModelSection
    data: DataSection
    sweep: SweepSection
    pruning: PruningSection = Field(default_factory=lambda: PruningSection())
    repair: RepairSection = Field(default_factory=lambda: RepairSection())
    finetune: FineTuneSection = Field(default_factory=lambda: FineTuneSection())
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    numerics: NumericsSection = Field(default_factory=lambda: NumericsSection())
    resources: ResourcesSection = Field(default_factory=lambda: ResourcesSection())
    output: OutputSection = Field(default_factory=lambda: OutputSection())
    recommend: RecommendSection | None = Field(
        None, description="Limits of the recommended trial; null: the knee of accuracy against MACs."
    )
    questions: QuestionsSection = Field(default_factory=lambda: QuestionsSection())
    tracking: TrackingSection = Field(default_factory=lambda: TrackingSection())
    plugins: tuple[str, ...] = Field((), description="Modules to import that register methods, models or data sets.")

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, given: Any) -> Any:
        return in_own_directory(without_nulls(given))

    @field_validator("sweep", mode="after")
    @classmethod
    def _check_names(cls, sweep: SweepSection) -> SweepSection:
        for field, registry in (("methods", METHODS), ("coverage_metrics", METRICS)):
            for name in getattr(sweep, field):
                if name not in registry.names():
                    choices = name_among(name, registry.names())
                    raise ValueError(f"sweep.{field}: '{name}' is not a {registry.kind}; {choices}")
        for field in ("method_options", "method_seeds"):
            for name in getattr(sweep, field):
                if name not in sweep.methods:
                    choices = name_among(name, sweep.methods)
                    raise ValueError(f"sweep.{field}: '{name}' is not among sweep.methods; {choices}")
        readers = [name for name in sweep.methods if uses_coverage_metric(sweep, name)]
        if readers and not sweep.coverage_metrics:
            raise ValueError(f"sweep.coverage_metrics is []; allowed: at least one entry, which {readers[0]} needs")
        return sweep

    @field_validator("data", mode="after")
    @classmethod
    def _check_dataset(cls, data: DataSection) -> DataSection:
        if data.name not in DATASETS.names():
            raise ValueError(f"data.name: '{data.name}' is not a data set; {name_among(data.name, DATASETS.names())}")
        return data

    @model_validator(mode="after")
    def _check_sections_together(self) -> Study:
        calibration = self.data.calibration
        if calibration.split == self.evaluation.split and not calibration.allow_overlap:
            raise ValueError(
                f"data.calibration.split is '{calibration.split}', the split that evaluation scores; "
                "allowed: another split, or this one with data.calibration.allow_overlap: true"
            )
        if calibration.disjoint and isinstance(calibration.samples, tuple):
            raise ValueError(
                f"data.calibration.samples is {list(calibration.samples)}, and data.calibration.disjoint is true; "
                "allowed: one number of samples"
            )
        too_high = [ratio for ratio in self.sweep.ratios if ratio > self.pruning.max_ratio]
        if too_high:
            raise ValueError(
                f"sweep.ratios holds {too_high[0]}; allowed: at most pruning.max_ratio, {self.pruning.max_ratio}"
            )
        if self.pruning.remove_blocks == "auto" and (self.sweep.ratios or not self.sweep.budgets):
            found = f"sweep.ratios holds {self.sweep.ratios[0]}" if self.sweep.ratios else "sweep.budgets is empty"
            raise ValueError(
                f"pruning.remove_blocks is 'auto', and {found}; allowed: budgets alone, which blocks and layers share"
            )
        timed = next((budget for budget in self.sweep.budgets if budget.resource == "latency"), None)
        if timed is not None and self.evaluation.latency is None:
            raise ValueError(f"evaluation.latency is null, but sweep.budgets holds {timed}; needed: how to time")
        if self.recommend is not None:
            self.recommend.check_timed(self.evaluation)
        check_task(self)
        self.finetune.check_steps(self.sweep)
        self.finetune.check_images(min(draw.samples for draw in self.draws()))
        check_controls(self.sweep, self._labels, self.model, self.finetune)
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Study:
        workers, gpus = self.workers_per_trial, self.resources.gpus
        if workers > 1 and gpus != int(gpus):
            raise ValueError(
                f"resources.gpus_per_trial is {gpus:g} and finetune.num_workers {workers}; allowed: a whole number of "
                "GPUs per worker, since the workers of a trial cannot share one"
            )
        batch_size = self.finetune.batch_size or self.data.batch_size
        if workers > batch_size:
            raise ValueError(
                f"finetune.num_workers is {workers} and the batch has {batch_size} images; allowed: at most one worker "
                "per image"
            )
        return self

    @property
    def multiple(self) -> int | None:
        """The multiple of widths that the target likes, for `round_to: auto`; None: not known, the usual one."""
        return None if self.evaluation.target is None else self.evaluation.target.multiple

    @property
    def workers_per_trial(self) -> int:
        """Workers that a trial takes at least: as many as its fine-tuning, or one."""
        wanted = self.finetune.num_workers
        return wanted if self.fine_tunes and wanted != "auto" else 1

    @property
    def most_workers_per_trial(self) -> int:
        """Workers that a trial takes at most; above `workers_per_trial` only if their number is `auto`."""
        if self.finetune.num_workers != "auto" or not self.fine_tunes or not self.task.scores_in_shares:
            return self.workers_per_trial
        most = (self.finetune.batch_size or self.data.batch_size) // _LEAST_SHARE
        if self.finetune.data == "calibration":
            most = min(most, min(draw.samples for draw in self.draws()) // HELD_BACK)
        return max(1, most)

    @property
    def fine_tunes(self) -> bool:
        """Whether trials may fine-tune."""
        return self.finetune.epochs > 0 or self.finetune.between_steps > 0

    def draws(self) -> tuple[CalibrationDraw, ...]:
        """Return every draw of the calibration samples; most studies have one."""
        return self.data.calibration.draws()

    def of_draw(self, draw: CalibrationDraw) -> Study:
        """Return the study as if one draw of the calibration samples were its only one."""
        one = {"samples": draw.samples, "seed": draw.seed}
        calibration = self.data.calibration.model_copy(update=one)
        return self.model_copy(update={"data": self.data.model_copy(update={"calibration": calibration})})

    def draw_of(self, trial: Trial) -> CalibrationDraw:
        """Return the draw that a trial reads."""
        first = self.draws()[0]
        samples, seed = trial.calibration_samples, trial.calibration_seed
        return CalibrationDraw(first.samples if samples is None else samples, first.seed if seed is None else seed)

    def trials(self) -> tuple[Trial, ...]:
        """Expand the grid into trials, in the order of the study file; draws and then quantisations vary fastest.

        The controls come last.
        """
        sweep, calibration = self.sweep, self.data.calibration
        is_swept = {"samples": isinstance(calibration.samples, tuple), "seed": isinstance(calibration.seed, tuple)}
        draws = [
            {f"calibration_{name}": getattr(draw, name) for name in is_swept if is_swept[name]} for draw in self.draws()
        ]
        amounts: list[dict[str, Any]] = [{"ratio": ratio} for ratio in sweep.ratios]
        amounts += [{"budget": budget} for budget in sweep.budgets]
        trials = []
        for method in sweep.methods:
            metrics = self._metrics_of(method)
            options, seeds = sweep.method_options.get(method, {}), sweep.method_seeds.get(method, sweep.seeds)
            for metric, amount, mode, steps, seed, draw, bits in itertools.product(
                metrics, amounts, sweep.modes, sweep.steps, seeds, draws, sweep.quantization
            ):
                cell = {"mode": mode, "steps": steps, "seed": seed, "options": options, **amount, **draw}
                cell["quantization"] = bits
                trials.append(Trial(method=method, coverage_metric=metric, **cell))
        return (*trials, *control_trials(sweep, self._labels, draws))

    def choosing_trial(self, budget: Budget) -> Trial:
        """Return the trial that the residual blocks of a budget are chosen by: of reconstruction, else the first.

        All trials of a budget lose the same blocks, so that methods are compared on the same network.
        """
        own = [trial for trial in self.trials() if trial.control is None and trial.budget == budget]
        return next((trial for trial in own if trial.method == "reconstruction"), own[0])

    def _metrics_of(self, method: str) -> tuple[str | None, ...]:
        return self.sweep.coverage_metrics if uses_coverage_metric(self.sweep, method) else (None,)

    @property
    def _labels(self) -> list[str]:
        """The methods of the sweep, each with its coverage metric where it uses one."""
        methods = self.sweep.methods
        return [f"{name}/{metric}" if metric else name for name in methods for metric in self._metrics_of(name)]

    def to_yaml(self) -> str:
        """Return the resolved study: every key, with its default if the file left it out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `a.b=c` overrides to it, and validate it.

    Raises:
        StudyError: When the file cannot be read, is not YAML, or says something that is not allowed.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"study file '{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise StudyError(f"study file '{path}' is not YAML: {yaml_problem(error)}") from error
    if not isinstance(document, dict):
        found = "empty" if document is None else show(document)
        raise StudyError(f"study file '{path}' is {found}; needed: a mapping with at least model, data and sweep")
    return parse_study(document, overrides)


def parse_study(document: dict[str, Any], overrides: Sequence[str] = ()) -> Study:
    """Validate a study given as nested dicts, with `a.b=c` overrides applied to a copy of them.

    Raises:
        StudyError: One sentence on the first thing that is wrong: field, value, what is allowed.
    """
    document = copy.deepcopy(document) if overrides else document
    for override in overrides:
        apply_override(document, override)
    plugins = document.get("plugins")
    if isinstance(plugins, (list, tuple)):
        load_plugins(module for module in plugins if isinstance(module, str))
    try:
        return Study.model_validate(document)
    except ValidationError as error:
        raise StudyError(" ".join(f"study: {describe(error, Study)}".split())) from None
