"""The questions that a study of pruning methods answers: one file per question, found by its registry."""

from __future__ import annotations

from collections.abc import Mapping

from cleanai_ray.analysis.answers import Answer, put_in_words
from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.comparisons import holm
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS


def answer_questions(studies: Mapping[str, StudyFrames]) -> tuple[Answer, ...]:
    """Answer every question from the trials of one study, or from those of several together.

    Cells of different studies are different cells: pairs are formed within a study only. The p-values of all questions
    are corrected together.
    """
    evidence = Evidence(studies, gather(studies))
    asked, drafts = [], []
    for key, question in _in_order():
        asked.append(Answer(key, question.text, unit=question.unit))
        drafts.append(question.draft(evidence))
    corrected = holm([None if draft.missing else draft.comparison.p_value for draft in drafts])
    return tuple(put_in_words(*one) for one in zip(asked, drafts, corrected, strict=True))


def _in_order() -> list[tuple[str, Question]]:
    """Return every question with its key, by its position."""
    known: list[tuple[str, Question]] = [(key, QUESTIONS.get(key)()) for key in QUESTIONS.names()]
    return sorted(known, key=lambda item: item[1].position)
