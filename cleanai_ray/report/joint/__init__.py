"""The report of several runs together: a PDF and an HTML page, made from their run directories alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cleanai_ray.report.parts import Parts
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from cleanai_ray.analysis.joint.findings import JointFindings
    from cleanai_ray.report.blocks import Figure

__all__ = ["make_joint_report", "read_findings"]


def read_findings(runs: Sequence[RunDirectory], num_planned: int | None = None) -> JointFindings:
    """Return what several runs say together.

    Args:
        runs: Their run directories.
        num_planned: Runs that the whole study is to have; None where that is not known.

    Raises:
        ArtifactError: When one is not a run directory, or they cannot be joined.
    """
    from cleanai_ray.analysis.frames import StudyFrames
    from cleanai_ray.analysis.joint.findings import find_jointly
    from cleanai_ray.analysis.plugins import load_plugins_of

    studies = [StudyFrames.load(run) for run in runs]
    for study in studies:
        load_plugins_of(study)
    return find_jointly(studies, num_planned)


def make_joint_report(runs: Sequence[RunDirectory], out: RunDirectory, num_planned: int | None = None) -> list[str]:
    """Write report.pdf and report.html on several runs together; needs neither their models nor their data.

    Args:
        runs: Their run directories.
        out: The folder that the report is written to.
        num_planned: Runs that the whole study is to have; None where that is not known.

    Returns:
        The names of the files written, relative to `out`.

    Raises:
        ArtifactError: When one is not a run directory, or they cannot be joined.
        ReportError: When a part could not be made; the others are written.
    """
    from cleanai_ray.analysis.score_words import words_of_study
    from cleanai_ray.report.joint.document import write_joint_document
    from cleanai_ray.report.words import in_words

    findings, parts = read_findings(runs, num_planned), Parts()
    figure = parts.make("the chart of differences", lambda: _figure(findings))
    words = words_of_study(findings.joint.runs[0].study)
    document = in_words(write_joint_document(findings, figure), words)

    def pdf() -> bytes:
        from cleanai_ray.report.pdf.document import to_pdf

        return to_pdf(document)

    def page() -> bytes:
        from cleanai_ray.report.html.page import to_html

        return to_html(document).encode()

    written = []
    for name, make in (("report.pdf", pdf), ("report.html", page)):
        content = parts.make(name, make)
        if content is not None:
            out.write_bytes(name, content)
            written.append(name)
    parts.require_all(out.location)
    return written


def _figure(findings: JointFindings) -> Figure | None:
    from cleanai_ray.analysis.score_words import words_of_study
    from cleanai_ray.charts import style
    from cleanai_ray.charts.joint_differences import joint_differences
    from cleanai_ray.report.blocks import Figure
    from cleanai_ray.report.words import chart_in_words

    chart = joint_differences(findings.differences, findings.reference)
    if chart is None:
        return None
    words = words_of_study(findings.joint.runs[0].study)
    specification = chart_in_words(style.specification(chart), words)
    return Figure("joint_differences", style.draw(specification), specification)
