"""The first page: the verdict, its reasons, the key numbers and the facts of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cleanai_ray.analysis.findings import Headline
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, change, milliseconds, percent, plural, points, quantity, size, times
from cleanai_ray.analysis.score_words import dense_score, score_number, words_of
from cleanai_ray.report.blocks import Block, Callout, KeyNumber, KeyNumbers, Paragraph, Tone
from cleanai_ray.report.sections.base import ReportContent
from cleanai_ray.report.sections.reproduction import run_facts

_DIFFERENCES, _BY_MACS, _BY_LATENCY = "differences", "accuracy_macs", "accuracy_latency"

_TONES: dict[str, Tone] = {
    "acceptable": "good",
    "with reservations": "warn",
    "no limit stated": "plain",
    "not acceptable": "bad",
}
_VERDICTS = {
    "acceptable": "Acceptable: the loss is within the stated limit",
    "with reservations": "With reservations",
    "no limit stated": "No limit stated",
    "not acceptable": "Not acceptable",
}


def cover_blocks(content: ReportContent) -> list[Block]:
    """Return the blocks of the first page."""
    headline = content.findings.headline
    blocks: list[Block] = [Callout(_VERDICTS[headline.verdict], headline.sentence, _TONES[headline.verdict])]
    blocks += [_why(headline)] if headline.reasons else []
    blocks += [KeyNumbers(numbers)] if (numbers := _key_numbers(headline, content.study.target)) else []
    return [*blocks, run_facts(content.study), *content.charts(cover_chart(content))]


def cover_chart(content: ReportContent) -> str:
    """Return the chart of the first page: differences from a reference or, where there are none, accuracy and cost."""
    return _DIFFERENCES if _DIFFERENCES in content.figures else cost_charts(content.study)[0]


def cost_charts(study: StudyFrames) -> tuple[str, str]:
    """Return the charts of accuracy against cost, that of latency first where the study names a target."""
    return (_BY_MACS, _BY_LATENCY) if study.target is None else (_BY_LATENCY, _BY_MACS)


def _why(headline: Headline) -> Paragraph:
    shown = [_clipped(reason, 300) for reason in headline.reasons[:3]]
    rest = len(headline.reasons) - len(shown)
    more = [f"{plural(rest, 'further reason')}: see Risks."] if rest else []
    return Paragraph(" ".join(["Why:", *(f"{reason.removesuffix('.')}." for reason in shown), *more]))


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _key_numbers(headline: Headline, target: str | None) -> tuple[KeyNumber, ...]:
    best = headline.trial
    if best is None:
        return ()
    numbers = [
        _score(best),
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
            "speed-up, batch 1" if target is None else "speed-up in target",
            times(headline.speedup),
            _of(best["latency_ms"], best["latency_ms_dense"], milliseconds),
        ),
    ]
    return tuple(number for number in numbers if number.value != NONE)


def _score(best: dict[str, Any]) -> KeyNumber:
    """Return the score in its own units, or the accuracy with what it lost."""
    words, dense = words_of(best.get("metric")), dense_score(best)
    lost = points(None if best["loss_points"] is None else -best["loss_points"] / 100)
    if not words.is_inverted or best.get("score") is None:
        return KeyNumber("top-1 accuracy", percent(best["accuracy"]), f"{lost} against dense")
    beside = f"{words.compared} {lost}" if dense is None else f"dense {score_number(dense)}"
    return KeyNumber(words.name, score_number(best["score"]), beside)


def _of(value: float | None, dense: float | None, write: Callable[[float | None], str]) -> str:
    return f"{write(value)}, dense {write(dense)}"
