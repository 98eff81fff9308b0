"""The report of a study, made from its run directory alone: charts as SVG, a PDF and an HTML page."""

from __future__ import annotations

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.plugins import load_plugins_of
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS
from cleanai_ray.report.blocks import Figure
from cleanai_ray.report.html.page import to_html
from cleanai_ray.report.pdf.document import to_pdf
from cleanai_ray.report.sections import write_document
from cleanai_ray.storage.run_directory import RunDirectory

__all__ = ["make_report"]


def make_report(run: RunDirectory) -> list[str]:
    """Write charts/<name>.svg for every chart that the study has data for, report.pdf and report.html.

    Needs neither the model nor the data, and may be called again at any time. Charts of an earlier report are deleted
    where the study no longer has data for them.

    Returns:
        The names of the files written, relative to the run directory.

    Raises:
        ArtifactError: When results.parquet is missing or empty, or a file of the run directory cannot be read.
    """
    study = StudyFrames.load(run)
    load_plugins_of(study)
    figures = {}
    for name in CHARTS.names():
        chart = CHARTS.get(name)(study)
        if chart is None:
            run.delete(f"charts/{name}.svg")
        else:
            specification = style.specification(chart)
            figures[name] = Figure(name, style.draw(specification), specification)
    document = write_document(study, find(study), figures)
    contents = {f"charts/{name}.svg": figure.svg.encode() for name, figure in figures.items()}
    contents |= {"report.pdf": to_pdf(document), "report.html": to_html(document).encode()}
    for name, content in contents.items():
        run.write_bytes(name, content)
    return list(contents)
