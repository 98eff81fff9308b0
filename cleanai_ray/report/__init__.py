"""The report of a study, made from its run directory alone: charts as SVG, a PDF and an HTML page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cleanai_ray.report.parts import Parts
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from cleanai_ray.analysis.frames import StudyFrames
    from cleanai_ray.report.blocks import Document, Figure

__all__ = ["make_report"]


def make_report(run: RunDirectory) -> list[str]:
    """Write charts/<name>.svg for every chart that the study has data for, report.pdf and report.html.

    Needs neither the model nor the data, and may be called again at any time. Charts of an earlier report are deleted
    where the study no longer has data for them. What cannot be made, for instance the chart of a plug-in that raises,
    is left out; all that can be made is written.

    Returns:
        The names of the files written, relative to the run directory.

    Raises:
        ArtifactError: When results.parquet is missing or empty, or a file of the run directory cannot be read.
        ReportError: When a part could not be made; the message names it and its error, and the others are written.
    """
    from cleanai_ray.analysis.frames import StudyFrames
    from cleanai_ray.analysis.plugins import load_plugins_of

    study, parts = StudyFrames.load(run), Parts()
    load_plugins_of(study)
    figures = _figures(study, parts)
    contents = {f"charts/{name}.svg": figure.svg.encode() for name, figure in figures.items()}
    document = parts.make("its text", lambda: _document(study, figures))
    if document is not None:
        contents |= _files(document, parts)
    for name in (*(f"charts/{name}.svg" for name in _chart_names(parts)), "report.pdf", "report.html"):
        if name not in contents:
            run.delete(name)
    for name, content in contents.items():
        run.write_bytes(name, content)
    parts.require_all(run.location)
    return list(contents)


# What each part needs is imported where it is made: a package that is missing costs that part alone.


def _chart_names(parts: Parts) -> tuple[str, ...]:
    from cleanai_ray.registry import CHARTS

    return parts.make("its charts", CHARTS.names) or ()


def _figures(study: StudyFrames, parts: Parts) -> dict[str, Figure]:
    """Return every chart that the study has data for and that can be drawn, by name."""
    drawn = {name: parts.make(f"chart '{name}'", partial(_figure, study, name)) for name in _chart_names(parts)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _figure(study: StudyFrames, name: str) -> Figure | None:
    from cleanai_ray.analysis.score_words import words_of_study
    from cleanai_ray.charts import style
    from cleanai_ray.registry import CHARTS
    from cleanai_ray.report.blocks import Figure
    from cleanai_ray.report.words import chart_in_words

    chart = CHARTS.get(name)(study)
    if chart is None:
        return None
    specification = chart_in_words(style.specification(chart), words_of_study(study))
    return Figure(name, style.draw(specification), specification)


def _document(study: StudyFrames, figures: dict[str, Figure]) -> Document:
    from cleanai_ray.analysis.findings import find
    from cleanai_ray.analysis.score_words import words_of_study
    from cleanai_ray.report.sections import write_document
    from cleanai_ray.report.words import in_words

    return in_words(write_document(study, find(study), figures), words_of_study(study))


def _files(document: Document, parts: Parts) -> dict[str, bytes]:
    """Return the report's files that can be made, by name."""

    def pdf() -> bytes:
        from cleanai_ray.report.pdf.document import to_pdf

        return to_pdf(document)

    def page() -> bytes:
        from cleanai_ray.report.html.page import to_html

        return to_html(document).encode()

    made = {name: parts.make(name, make) for name, make in (("report.pdf", pdf), ("report.html", page))}
    return {name: content for name, content in made.items() if content is not None}
