"""The questions that a study of pruning methods answers: one file per question, found by its registry."""

from __future__ import annotations

from collections.abc import Mapping

from cleanai_ray.analysis.answers import Answer, put_in_words
from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS


def answer_questions(studies: Mapping[str, StudyFrames]) -> tuple[Answer, ...]:
    """Answer every question from the trials of one study, or from those of several together.

    Cells of different studies are different cells: pairs are formed within a study only. The question that the study
    files declare as primary stands alone, at 5 %; all others are exploratory and are corrected together (Bonferroni),
    each that has an interval, for each can give a verdict that is wrong.
    """
    evidence = Evidence(studies, gather(studies))
    declared = {as_mapping(study.study.get("questions")).get("primary") for study in studies.values()}
    primary = declared.pop() if len(declared) == 1 else None
    asked, drafts = [], []
    for key, question in _in_order():
        asked.append(Answer(key, question.text, unit=question.unit, is_primary=key == primary))
        drafts.append(question.draft(evidence))
    family = sum(
        not one.is_primary and not draft.missing and draft.comparison.error is not None
        for one, draft in zip(asked, drafts, strict=True)
    )
    corrected = [draft if one.is_primary else draft.among(family) for one, draft in zip(asked, drafts, strict=True)]
    return tuple(put_in_words(*one) for one in zip(asked, corrected, strict=True))


def _in_order() -> list[tuple[str, Question]]:
    """Return every question with its key, by its position."""
    known: list[tuple[str, Question]] = [(key, QUESTIONS.get(key)()) for key in QUESTIONS.names()]
    return sorted(known, key=lambda item: item[1].position)
