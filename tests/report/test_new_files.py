"""Adding a question, a risk or a chapter is adding one file: findings and report have it, where it asks to stand."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from new_files import new_file
from report import synthetic

from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.findings import Findings, find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions.base import Evidence
from cleanai_ray.registry import CHAPTERS, QUESTIONS, RISKS, Registry
from cleanai_ray.report import make_report
from cleanai_ray.storage.run_directory import RunDirectory

QUESTION = '''
from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("b3")
class WandaOrRandom(Question):
    """Wanda against random."""

    position = 35
    text = "Is wanda better than random & alone?"

    def draft(self, evidence: Evidence) -> Draft:
        return Draft(evidence.compare("wanda", "random"), "wanda against random")
'''

RISK = '''
from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("few_trials")
class FewTrials(Check):
    """Studies of few trials."""

    position = 165
    looks_for = "a handful of trials"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        yield Risk("info", "few trials", f"Only {len(study.results)} trials ran.")
'''

CHAPTER = '''
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter, Paragraph
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent


@CHAPTERS.register("nodes")
class Nodes(ChapterWriter):
    """The nodes that trials ran on."""

    position = 45
    charts = ("time_by_stage",)

    def write(self, content: ReportContent) -> Chapter:
        names = ", ".join(content.study.results["node"].unique().sort())
        return Chapter("Nodes", (Paragraph(f"Trials ran on <{names}>."), *content.charts(*self.charts)))
'''

FILES = {"wanda_or_random": (QUESTIONS, QUESTION), "few_trials": (RISKS, RISK), "nodes": (CHAPTERS, CHAPTER)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return synthetic.make(methods=("wanda", "magnitude", "random")).write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def before(run: RunDirectory) -> Findings:
    return find(StudyFrames.load(run))


@pytest.fixture(scope="module")
def with_files(run: RunDirectory, before: Findings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, str]:
    """The findings and the page of a study, made while the three files were in place."""
    folder = tmp_path_factory.mktemp("files")
    with ExitStack() as files:
        for name, (registry, source) in FILES.items():
            files.enter_context(new_file(registry, name, source, folder / name))
        make_report(run)
        found = find(StudyFrames.load(run))
    return found, run.read_text("report.html")


def test_a_question_is_answered_where_it_asks_to_stand(
    before: Findings, with_files: tuple[Findings, str], run: RunDirectory
) -> None:
    answers, page = with_files[0].answers, with_files[1]
    known = [answer.key for answer in before.answers]
    assert [answer.key for answer in answers] == [*known[:3], "b3", *known[3:]]
    assert known[2:4] == ["b2", "c"]
    own = next(answer for answer in answers if answer.key == "b3")
    means = dict(StudyFrames.load(run).ok.group_by("method").agg(pl.mean("accuracy")).rows())
    assert own.effect == pytest.approx(100 * (means["wanda"] - means["random"]))
    assert own.sentence in unescape(page)
    assert "Is wanda better than random &amp; alone?" in page


def test_a_new_question_is_corrected_with_the_others(with_files: tuple[Findings, str], run: RunDirectory) -> None:
    own = next(answer for answer in with_files[0].answers if answer.key == "b3")
    studies = {"s": StudyFrames.load(run)}
    alone = Evidence(studies, gather(studies)).compare("wanda", "random").p_value
    assert alone is not None
    assert own.p_value is not None
    assert own.p_value >= 2 * alone


def test_a_risk_is_found_and_listed_among_what_was_checked(before: Findings, with_files: tuple[Findings, str]) -> None:
    found, page = with_files
    kinds = [risk.kind for risk in found.risks]
    assert [kind for kind in kinds if kind != "few trials"] == [risk.kind for risk in before.risks]
    assert kinds.index("few trials") == kinds.index("choice of the winner") + 1
    assert "Only 12 trials ran." in page
    assert re.search(r"Checked: [^<]*a handful of trials", page)


def test_a_chapter_stands_between_two_others_with_its_own_chart(with_files: tuple[Findings, str]) -> None:
    page = with_files[1].partition("<script")[0]
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        *("Summary", "Comparisons", "Findings", "Results", "Every trial", "Nodes", "Best trial", "Risks"),
        "How to reproduce",
    ]
    assert "Trials ran on &lt;worker-1&gt;." in page
    place = page.index('data-chart="time_by_stage"')
    assert page.index("<h2>Nodes</h2>") < place < page.index("<h2>Best trial</h2>")
    assert page.count('data-chart="time_by_stage"') == 1


def test_without_the_files_nothing_of_them_is_known() -> None:
    assert "b3" not in QUESTIONS.names()
    assert "few_trials" not in RISKS.names()
    assert "nodes" not in CHAPTERS.names()


@pytest.mark.parametrize("registry", [QUESTIONS, RISKS, CHAPTERS], ids=lambda registry: registry.kind)
def test_no_two_of_a_kind_claim_one_place(registry: Registry) -> None:
    positions = [registry.get(name).position for name in registry.names()]
    assert len(set(positions)) == len(positions) >= 7


def test_a_report_has_what_the_plugins_of_its_study_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A module that is missing is a warning: the report may be made years later, on another machine."""
    run = synthetic.make(methods=("wanda", "random")).write(tmp_path / "run")
    text = run.read_text("study.yaml")
    run.write_text("study.yaml", f"{text}\nplugins: [chapter_of_nodes, not_there_any_more]\n")
    (tmp_path / "chapter_of_nodes.py").write_text(CHAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    CHAPTERS.names()
    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(CHAPTERS, attribute, getattr(CHAPTERS, attribute).copy())
    with caplog.at_level(logging.WARNING):
        make_report(run)
    assert "Trials ran on" in run.read_text("report.html")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "not_there_any_more" in warning
