"""The chapters of the report: one file per chapter, found by its registry."""

from __future__ import annotations

from collections.abc import Mapping

from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Document, Figure
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.cover import cover_blocks


def write_document(study: StudyFrames, findings: Findings, figures: Mapping[str, Figure]) -> Document:
    """Return the report of a study.

    Args:
        study: Its frames.
        findings: Its results in words and numbers.
        figures: By name, every chart that the study has data for.
    """
    content = ReportContent(study, findings, figures)
    writers: list[ChapterWriter] = [CHAPTERS.get(name)() for name in CHAPTERS.names()]
    chapters = [writer.write(content) for writer in sorted(writers, key=lambda writer: writer.place(content))]
    return Document(
        title=study.name,
        question=str(study.study.get("question") or ""),
        version=str(study.environment.get("version") or ""),
        cover=tuple(cover_blocks(content)),
        chapters=tuple(chapter for chapter in chapters if chapter is not None),
    )
