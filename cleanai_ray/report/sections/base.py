"""A chapter's writer: every chapter of the report is one, in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.report.blocks import Chapter, Figure


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report is written from.

    Attributes:
        study: The frames of the study.
        findings: The results in words and numbers.
        figures: By name, every chart that the study has data for.
    """

    study: StudyFrames
    findings: Findings
    figures: Mapping[str, Figure]

    def charts(self, *names: str) -> list[Figure]:
        """Return those of the named charts that there are."""
        return [self.figures[name] for name in names if name in self.figures]


class ChapterWriter(ABC):
    """Writes one chapter.

    Attributes:
        position: Place among the chapters; any number, so that a new one goes between two that are there.
        charts: Names of the charts that the chapter shows. The chapter of results shows those that no other names.
    """

    position: float
    charts: tuple[str, ...] = ()

    def place(self, content: ReportContent) -> float:
        """Return the position in one report; that of the class unless a chapter moves."""
        return self.position

    @abstractmethod
    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where it has nothing to say about the study."""
