"""What a report says, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleanai_ray.analysis.findings import Findings, Headline
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, change, milliseconds, percent, plural, points, quantity, size, times
from cleanai_ray.analysis.risks.all import CHECKED
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.report.blocks import (
    Block,
    Callout,
    Document,
    Figure,
    Heading,
    KeyNumber,
    KeyNumbers,
    Paragraph,
    RiskNote,
    Section,
    Tone,
)
from cleanai_ray.report.sections import tables
from cleanai_ray.report.sections.quantization import quantization_blocks, quantization_costs
from cleanai_ray.report.sections.reproduction import reproduction_section, run_facts
from cleanai_ray.report.sections.summary import answer_blocks, findings_section
from cleanai_ray.report.sections.trial_table import MAX_TRIALS, SIGNIFICANT, trial_table

_COVER_CHART = "accuracy_macs"
_BEST_CHARTS = ("dense_vs_best", "class_change", "layer_channels")
_FINDING_CHARTS = ("critical_difference",)
_RESULT_CHARTS = ("accuracy_by_method", "accuracy_latency", "coverage_heatmap", "finetune_curves")
_TONES: dict[str, Tone] = {"acceptable": "good", "with reservations": "warn", "not acceptable": "bad"}
_VERDICTS = {
    "acceptable": "Acceptable by the checks of this report",
    "with reservations": "Acceptable with reservations",
    "not acceptable": "Not acceptable",
}


def write_document(study: StudyFrames, findings: Findings, figures: Mapping[str, Figure]) -> Document:
    """Return the report of a study.

    Args:
        study: Its frames.
        findings: What they say.
        figures: By name, every chart that the study has data for.
    """
    results = _results(study, figures)
    risks = _risks(findings)
    if study.best is None:
        sections = [risks, *results]
    else:
        answered = findings_section(findings.answers, figures)
        answers = [answered] if answered is not None else []
        sections = [_summary(study, findings), *answers, *results, _best_trial(study, study.best, figures), risks]
    sections.append(reproduction_section(study))
    return Document(
        title=study.name,
        question=str(study.study.get("question") or ""),
        version=str(study.environment.get("version") or ""),
        cover=tuple(_cover(study, findings.headline, figures)),
        sections=tuple(sections),
    )


def _cover(study: StudyFrames, headline: Headline, figures: Mapping[str, Figure]) -> list[Block]:
    blocks: list[Block] = [Callout(_VERDICTS[headline.verdict], headline.sentence, _TONES[headline.verdict])]
    blocks += [_why(headline)] if headline.reasons else []
    blocks += [KeyNumbers(numbers)] if (numbers := _key_numbers(headline)) else []
    blocks.append(run_facts(study))
    return [*blocks, figures[_COVER_CHART]] if _COVER_CHART in figures else blocks


def _why(headline: Headline) -> Paragraph:
    shown = [_clipped(reason, 300) for reason in headline.reasons[:3]]
    rest = len(headline.reasons) - len(shown)
    more = f" ({plural(rest, 'further reason')} under Risks)" if rest else ""
    return Paragraph(f"Why: {'; '.join(reason.removesuffix('.') for reason in shown)}{more}.")


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _key_numbers(headline: Headline) -> tuple[KeyNumber, ...]:
    best = headline.trial
    if best is None:
        return ()
    lost = None if best["loss_points"] is None else -best["loss_points"] / 100
    numbers = [
        KeyNumber("top-1 accuracy", percent(best["accuracy"]), f"{points(lost)} against dense"),
        KeyNumber("MACs", change(best["macs"], best["macs_dense"]), _of(best["macs"], best["macs_dense"], quantity)),
        KeyNumber(
            "parameters",
            change(best["params"], best["params_dense"]),
            _of(best["params"], best["params_dense"], quantity),
        ),
        KeyNumber(
            "size",
            change(best["size_bytes"], best["size_bytes_dense"]),
            _of(best["size_bytes"], best["size_bytes_dense"], size),
        ),
        KeyNumber(
            "speed-up, batch 1",
            times(headline.speedup),
            _of(best["latency_ms_b1_p50"], best["latency_ms_b1_p50_dense"], milliseconds),
        ),
    ]
    return tuple(number for number in numbers if number.value != NONE)


def _of(value: float | None, dense: float | None, write: object) -> str:
    assert callable(write)
    return f"{write(value)}, dense {write(dense)}"


def _summary(study: StudyFrames, findings: Findings) -> Section:
    blocks = answer_blocks(str(study.study.get("question") or ""), findings)
    smallest = findings.smallest_within_a_point
    if smallest is not None and study.best is not None and smallest["trial_id"] != study.best["trial_id"]:
        text = (
            f"The smallest model within one point of the dense one is {describe_trial(smallest)}: "
            f"{percent(smallest['accuracy'])} at {percent(smallest['macs_share'], 0)} of the MACs "
            f"({smallest['trial_id']})."
        )
        blocks.append(Paragraph(text))
    elif smallest is None and study.best is not None and study.best["loss_points"] is not None:
        blocks.append(Paragraph("No trial stays within one point of the dense model."))
    blocks += [_risk_count(findings), Heading("Dense against best"), tables.dense_against_best(study)]
    if findings.cells:
        note = (
            "The most accurate trial at every ratio or budget, and the best of any other method. Apart: whether their "
            "95 % intervals are disjoint."
        )
        blocks += [Heading("Best at every ratio and budget"), tables.cells(findings), Paragraph(note, is_small=True)]
    costs = quantization_costs(study)
    if costs:
        blocks += [Heading("Quantisation"), *quantization_blocks(costs)]
    if findings.ranking:
        blocks += [
            Heading("Methods compared"),
            tables.ranking(findings),
            Paragraph(_ranking_note(findings), is_small=True),
        ]
    return Section("Summary", tuple(blocks))


def _ranking_note(findings: Findings) -> str:
    first = findings.ranking[0]
    where = (
        f"Mean accuracy over the {plural(first.num_cells, 'cell')} (ratio or budget, mode, steps) of all methods."
        if first.is_shared
        else "The methods share no cell (ratio or budget, mode, steps): each mean is over a method's own."
    )
    wins = "Wins: shared cells in which the method is the best."
    return f"{where} {wins} Against random: mean difference over the cells of both."


def _risk_count(findings: Findings) -> Paragraph:
    counts = {level: sum(risk.severity == level for risk in findings.risks) for level in ("high", "medium", "info")}
    return Paragraph(
        f"Risks found: {counts['high']} high, {counts['medium']} medium, {counts['info']} for information; see Risks."
    )


def _results(study: StudyFrames, figures: Mapping[str, Figure]) -> list[Section]:
    others = sorted(set(figures) - {_COVER_CHART, *_BEST_CHARTS, *_FINDING_CHARTS, *_RESULT_CHARTS})
    shown: list[Block] = [figures[name] for name in (*_RESULT_CHARTS, *others) if name in figures]
    sections = [Section("Results", tuple(shown), starts_page=True)] if shown else []
    total = len(study.results)
    note = (
        f"{plural(total, 'trial')}, {len(study.ok)} with a result, the most accurate first. Top-1 with half the width "
        "of its 95 % interval (Wilson); against dense in percentage points; MACs as a share of the dense model; "
        "speed-up at batch 1."
    )
    if study.ok["speedup_b1_low"].count():
        note += " In brackets its 95 % interval (bootstrap)."
    if study.ok["mcnemar_p"].count():
        note += f" *: McNemar's exact test tells it from the dense model, p < {SIGNIFICANT:g}."
    if len(study.ok) > MAX_TRIALS or len(study.failed) > MAX_TRIALS:
        note += (
            f" Print lists {MAX_TRIALS} with a result and {MAX_TRIALS} that failed at the most; the page has them all."
        )
    table = Section("Every trial", (Paragraph(note, is_small=True), trial_table(study)))
    return [*sections, table]


def _best_trial(study: StudyFrames, best: dict[str, Any], figures: Mapping[str, Figure]) -> Section:
    blocks: list[Block] = [Paragraph(f"{describe_trial(best)}; trial {best['trial_id']}.")]
    blocks += [figures[_BEST_CHARTS[0]]] if _BEST_CHARTS[0] in figures else []
    blocks += [Heading("Accuracy after every stage"), tables.stages(best)]
    timed = tables.latency(study, best["trial_id"])
    blocks += [Heading("Speed"), timed] if timed is not None else []
    blocks += [figures[_BEST_CHARTS[1]]] if _BEST_CHARTS[1] in figures else []
    layers = tables.layers(study, best["trial_id"])
    if layers is not None:
        blocks += [figures[_BEST_CHARTS[2]]] if _BEST_CHARTS[2] in figures else []
        blocks += [Heading("Layers"), layers]
    return Section("Best trial", tuple(blocks), starts_page=True)


def _risks(findings: Findings) -> Section:
    notes: list[Block] = [RiskNote(risk.severity, risk.kind, risk.sentence, risk.details) for risk in findings.risks]
    serious = [risk for risk in findings.risks if risk.severity != "info"]
    if not serious:
        text = "No risk of high or medium severity was found. That covers what is listed below and nothing else."
        notes.insert(0, Paragraph(text))
    checked = (
        f"Checked: {CHECKED}. A check looks at what the study measured; it does not replace a test on the data and the "
        "device of the deployment."
    )
    return Section("Risks", (*notes, Paragraph(checked, is_small=True)), starts_page=True)
