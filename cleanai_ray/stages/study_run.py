"""A study that ran, opened in Python: its tables, its models, and what the tables say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import polars as pl
import yaml

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.findings import Findings, find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.joint.findings import find_jointly
from cleanai_ray.analysis.named_trial import NAMES, named_trial
from cleanai_ray.analysis.numbers import NONE, percent, plural
from cleanai_ray.analysis.plugins import load_plugins_of
from cleanai_ray.analysis.recommendation import Recommendation
from cleanai_ray.analysis.risks.base import Risk
from cleanai_ray.analysis.score_words import score_number, words_of_study
from cleanai_ray.config.task import CLASSIFICATION
from cleanai_ray.display.tables import Displayed, Grid, Summary
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import CHARTS
from cleanai_ray.stages.joint_analysis import JointAnalysis
from cleanai_ray.storage.run_directory import PLAN_FILE, RunDirectory

if TYPE_CHECKING:
    from altair.typing import ChartType
    from torch import nn

    from cleanai_ray.pruning.plan import PruningPlan

_SHOWN_TRIALS = 20


class StudyRun(Displayed):
    """A study that ran.

    Args:
        directory: Its run directory.

    Attributes:
        directory: The same.
        frames: Its tables as polars frames.

    Raises:
        ArtifactError: When it holds no trial, or a file cannot be read.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.frames = StudyFrames.load(directory)

    @property
    def location(self) -> str:
        """The folder or URL of the run directory."""
        return self.directory.location

    @property
    def trials(self) -> pl.DataFrame:
        """A row for each trial, failed ones included: the columns of results.parquet, and what was asked for."""
        return self.frames.trials

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the trial that the study leads to, as in its report; None where all failed."""
        return self.frames.best

    def plan(self, trial: str = "best") -> PruningPlan:
        """Return the plan of a trial.

        Args:
            trial: Trial id, `recommended` or `best`.

        Raises:
            ArtifactError: When there is none, or its model was not saved.
        """
        from cleanai_ray.pruning.plan import PruningPlan

        return PruningPlan.from_json(self.directory.read_text(f"{self._folder(trial)}/{PLAN_FILE}"))

    def model(self, trial: str = "best") -> nn.Module:
        """Return the pruned model of a trial, in evaluation mode.

        Args:
            trial: Trial id, `recommended` or `best`.

        Raises:
            ArtifactError: When there is none, or it was not saved.
        """
        from cleanai_ray.config.sections import ModelSection
        from cleanai_ray.models import build_model
        from cleanai_ray.pruning.saved_model import load_model
        from cleanai_ray.tasks import find_task

        folder = self._folder(trial)
        load_plugins_of(self.frames)
        study = yaml.safe_load(self.directory.read_text("study.yaml"))
        section = ModelSection.model_validate(study["model"])
        task = find_task((study.get("task") or {}).get("name", CLASSIFICATION))
        dense = build_model(section.model_copy(update={"weights": None, "train": None}), task=task)
        return load_model(dense, self.directory, folder).eval()

    def _folder(self, trial: str) -> str:
        name = named_trial(self.frames, trial) if trial in NAMES else trial
        saved = self.directory.list("models")
        if name not in saved:
            raise ArtifactError(
                f"run directory '{self.location}' holds no model of trial '{name}'; saved: {', '.join(saved) or 'none'}"
            )
        return f"models/{name}"

    def summary(self) -> Summary:
        """Return the best trials as a table, the most accurate first."""
        ranked, words = self.frames.ranked, words_of_study(self.frames)
        rows = tuple(
            (
                row["trial_id"],
                score_number(row["score"]) if words.is_inverted else percent(row["accuracy"], 2),
                percent(row["macs_share"]),
                percent(row["params_share"]),
                NONE if row["speedup"] is None else f"{row['speedup']:.2f}",
            )
            for row in ranked.head(_SHOWN_TRIALS).iter_rows(named=True)
        )
        grid = Grid(columns=("trial", words.name, "MACs", "parameters", "speed-up"), rows=rows, left=("trial",))
        rest = len(ranked) - len(rows)
        notes = [f"{plural(rest, 'more trial')} in `trials`."] if rest > 0 else []
        return Summary(self._in_short(), (grid,), tuple(notes))

    def _in_short(self) -> str:
        failed, words, facts = len(self.frames.failed), words_of_study(self.frames), self.frames.dense
        value = score_number(facts.get("score")) if words.is_inverted else percent(facts.get("accuracy"), 2)
        parts = [plural(len(self.trials), "trial"), f"{failed} failed", f"dense {words.name} {value}"]
        return f"{self.frames.name}: {', '.join(parts)}, in {self.location}"

    def __repr__(self) -> str:
        return f"StudyRun({self._in_short()})"


@dataclass(frozen=True, eq=False)
class StudyAnalysis(Displayed):
    """What the tables of a study say.

    Attributes:
        frames: The tables, as polars frames.
    """

    frames: StudyFrames

    @cached_property
    def findings(self) -> Findings:
        """Everything that the report says in words."""
        return find(self.frames)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The questions, each with its verdict, effect, interval and p-value."""
        return self.findings.answers

    @property
    def risks(self) -> tuple[Risk, ...]:
        """What speaks against taking the numbers at their face value, the gravest first."""
        return self.findings.risks

    @property
    def recommendation(self) -> Recommendation:
        """The trial to take, and why."""
        return self.findings.recommendation

    def chart(self, name: str) -> ChartType | None:
        """Return a chart of the report; None if the study has no data for it.

        Args:
            name: A name of `cleanai list charts`.

        Raises:
            RegistryError: When there is no such chart.
        """
        import altair as alt

        from cleanai_ray.charts import style

        found = CHARTS.get(name)(self.frames)
        return None if found is None else alt.Chart.from_dict(style.specification(found))

    def summary(self) -> Summary:
        """Return the answer to the study's question, the answers about methods, and the risks."""
        told = tuple((answer.question, answer.verdict, answer.sentence) for answer in self.answers)
        risks = tuple((risk.severity, risk.sentence) for risk in self.risks)
        grids = [
            Grid(columns=columns, rows=rows, left=columns)
            for columns, rows in ((("question", "answer", "why"), told), (("risk", "finding"), risks))
            if rows
        ]
        return Summary(self.findings.headline.sentence, tuple(grids), (self.recommendation.sentence,))

    def __repr__(self) -> str:
        return f"StudyAnalysis({self.frames.name}: {len(self.answers)} answers, {len(self.risks)} risks)"


Run: TypeAlias = StudyRun | str | os.PathLike[str]
"""What `run` or `load_run` returned, or a run directory."""


def load_run(location: str | os.PathLike[str]) -> StudyRun:
    """Open the run directory of a study that ran, here or elsewhere; neither its data nor torch is needed.

    Args:
        location: The folder or URL.

    Raises:
        ArtifactError: When it is not a run directory, or holds no trial.
    """
    return StudyRun(RunDirectory(location))


@overload
def analyse(run: Run) -> StudyAnalysis: ...


@overload
def analyse(run: list[Any] | tuple[Run, ...], *, planned: int | None = None) -> JointAnalysis: ...


def analyse(run: Run | list[Any] | tuple[Run, ...], *, planned: int | None = None) -> StudyAnalysis | JointAnalysis:
    """Return what the tables of a study say: its frames, the answers to the questions about methods, and the risks.

    Of a list of runs, return what they say together: networks, each trained one or several times.

    Args:
        run: What `run` or `load_run` returned, or a run directory; or a list of these.
        planned: Of a list, the runs that the whole study is to have in the end.

    Raises:
        ArtifactError: When it is not a run directory, or holds no trial; or several cannot be joined.
    """
    if isinstance(run, (StudyRun, str, os.PathLike)):
        frames = _frames(run)
        return StudyAnalysis(frames)
    return JointAnalysis(find_jointly([_frames(each) for each in run], planned))


def _frames(run: Run) -> StudyFrames:
    frames = run.frames if isinstance(run, StudyRun) else load_run(run).frames
    load_plugins_of(frames)
    return frames
