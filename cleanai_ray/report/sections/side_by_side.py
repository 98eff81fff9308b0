"""Several studies side by side: their differences, and their common answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import NONE, percent
from cleanai_ray.analysis.plugins import load_plugins_of
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.analysis.score_words import compared_text, dense_score, score_number, words_of_study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.report.blocks import Block, Chapter, Column, Document, Heading, Paragraph, Table
from cleanai_ray.report.html.page import to_html
from cleanai_ray.report.pdf.document import to_pdf
from cleanai_ray.report.sections.findings import finding_row, findings_chapter
from cleanai_ray.report.words import in_words
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.schemas import COMPARISON, COMPARISON_FILE, RESULTS_FILE, to_table

FINDING_COLUMNS = ("question", "answer", "effect", "95 % interval", "could tell", "pairs", "p")

_SECTIONS = ("model", "data", "sweep", "pruning", "repair", "finetune", "evaluation", "recommend")


@dataclass(frozen=True)
class SideBySide:
    """Several studies together.

    Attributes:
        studies: Their names, with the run directory added where two have the same name.
        facts: Rows of facts and results: a heading, and one text per study.
        differences: Rows of keys of the study file, versions and digests in which they differ; laid out like `facts`.
        answers: The questions, answered from the trials of all studies; pairs are formed within a study.
    """

    studies: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    differences: tuple[tuple[str, ...], ...]
    answers: tuple[Answer, ...]


def compare_studies(runs: Sequence[RunDirectory]) -> SideBySide:
    """Read run directories and compare their studies.

    Raises:
        ArtifactError: When there are fewer than two, one is given twice, one is not a run directory, or their scores
            are not the same.
    """
    if len(runs) < 2:
        raise ArtifactError(f"compare: number of run directories is {len(runs)}; needed: at least 2")
    places = [run.location for run in runs]
    repeated = next((place for place in places if places.count(place) > 1), None)
    if repeated is not None:
        raise ArtifactError(f"compare: '{repeated}' is given twice; allowed: each run directory once")
    loaded = [_load(run) for run in runs]
    words = [words_of_study(study) for study in loaded]
    if len(set(words)) > 1:
        scores = " and ".join(sorted({each.name for each in words}))
        raise ArtifactError(f"compare: the studies are scored by {scores}; allowed: studies with the same score")
    names = [study.name for study in loaded]
    labels = [f"{name} ({place})" if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]
    studies = dict(zip(labels, loaded, strict=True))
    answers, facts = in_words((answer_questions(studies), _facts(loaded)), words[0])
    return SideBySide(tuple(labels), facts, _differences(loaded), answers)


def _load(run: RunDirectory) -> StudyFrames:
    if not run.exists(RESULTS_FILE):
        raise ArtifactError(
            f"compare: '{run.location}' is not the run directory of a study: it holds no {RESULTS_FILE}, which "
            "`cleanai run` writes there"
        )
    study = StudyFrames.load(run)
    load_plugins_of(study)
    return study


def _facts(studies: Sequence[StudyFrames]) -> tuple[tuple[str, ...], ...]:
    rows = [
        ("trials", *(f"{len(study.results)}, {len(study.failed)} failed" for study in studies)),
        ("dense top-1", *(percent(_dense(study), 2) for study in studies)),
        ("best top-1", *(NONE if study.best is None else percent(study.best["accuracy"], 2) for study in studies)),
        *_own_units(studies),
        ("best trial", *(NONE if study.best is None else str(study.best["trial_id"]) for study in studies)),
        ("recommended", *(_recommended(study) for study in studies)),
    ]
    return tuple(rows)


def _dense(study: StudyFrames) -> float | None:
    """Return the dense model's accuracy on the images that the best trial is reported on."""
    value: float | None = study.dense.get("accuracy") if study.best is None else study.best["accuracy_dense"]
    return value


def _own_units(studies: Sequence[StudyFrames]) -> list[tuple[str, ...]]:
    """Return the scores of the dense models and of the best trials, where something else is compared."""
    words = words_of_study(studies[0])
    if not words.is_inverted:
        return []
    best = (NONE if study.best is None else score_number(study.best["score"]) for study in studies)
    dense = (NONE if study.best is None else score_number(dense_score(study.best)) for study in studies)
    return [(f"dense {words.name}", *dense), (f"best {words.name}", *best)]


def _recommended(study: StudyFrames) -> str:
    trial = study.choice.recommendation.trial
    if trial is None:
        return "none"
    return f"{trial['trial_id']}: {compared_text(trial)} at {percent(trial['macs_share'], 0)} of the MACs"


def _differences(studies: Sequence[StudyFrames]) -> tuple[tuple[str, ...], ...]:
    flat = [_flatten(_described(study)) for study in studies]
    keys = list(dict.fromkeys(key for facts in flat for key in facts))
    rows = [(key, *(_text(facts.get(key)) for facts in flat)) for key in keys]
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def _described(study: StudyFrames) -> dict[str, Any]:
    environment = study.environment
    versions = {"CleanAI-Ray": environment.get("version"), "Python": environment.get("python")}
    packages = environment.get("packages")
    digests = environment.get("digests")
    return {
        **{name: study.study.get(name) for name in _SECTIONS},
        "versions": {**versions, **as_mapping(packages)},
        "digests": as_mapping(digests),
        "hardware": environment.get("hardware"),
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping) and entry:
            found.update(_flatten(entry, f"{name}."))
        else:
            found[name] = entry
    return found


def _text(value: Any) -> str:
    if value is None or value == {}:
        return NONE
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def finding_rows(found: SideBySide) -> tuple[tuple[str, ...], ...]:
    """Return the rows of a table with `FINDING_COLUMNS`, one per answer that has an effect."""
    return tuple(finding_row(answer) for answer in found.answers if answer.effect is not None)


def write_comparison(found: SideBySide, run: RunDirectory) -> list[str]:
    """Write comparison.parquet (one row per question), comparison.html and comparison.pdf, and return their names."""
    columns = COMPARISON.names
    rows = [{name: getattr(answer, name) for name in columns if name != "studies"} for answer in found.answers]
    run.write_table(COMPARISON_FILE, to_table([{**row, "studies": list(found.studies)} for row in rows], COMPARISON))
    document = _document(found)
    run.write_bytes("comparison.html", to_html(document).encode())
    run.write_bytes("comparison.pdf", to_pdf(document))
    return [COMPARISON_FILE, "comparison.html", "comparison.pdf"]


def _document(found: SideBySide) -> Document:
    width = 0.8 / len(found.studies)
    columns = (Column("", 0.2), *(Column(name, width) for name in found.studies))
    cover: list[Block] = [Table(columns, found.facts)]
    blocks: list[Block] = [Paragraph("Keys of study files, versions and digests in which the studies differ.")]
    blocks.append(Table(columns, found.differences) if found.differences else Paragraph("None."))
    chapters = [Chapter("What differs", tuple(blocks))]
    answered = findings_chapter(found.answers, {})
    note = (
        "Cells of different studies are different cells: pairs of trials are formed within a study. Runs that differ "
        "in the training of their network are better reported on together: `cleanai report` takes several."
    )
    pooled: tuple[Block, ...] = (Paragraph("No question can be answered from these studies."),)
    if answered is not None:
        pooled = (Heading("Pooled"), Paragraph(note), *answered.blocks)
    return Document(
        title=" and ".join(found.studies) if len(found.studies) == 2 else f"{len(found.studies)} studies",
        question="",
        version="",
        cover=tuple(cover),
        chapters=(*chapters, Chapter("Findings", pooled, starts_page=True)),
    )
