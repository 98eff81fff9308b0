"""Numbers in words, the same in charts and reports."""

from __future__ import annotations

NONE = "\N{EN DASH}"
"""A number that was not measured."""

MINUS = "\N{MINUS SIGN}"

_RESOURCES = {"macs": "MACs", "params": "params", "latency": "latency", "size_mb": "file"}


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction in per cent: 0.9312 is `93.1 %`."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None, digits: int = 1) -> str:
    """Write a difference of accuracies, given as a fraction, in percentage points with its sign: `-1.2 points`."""
    if value is None:
        return NONE
    return f"{signed(100 * value, digits)} points"


def change(value: float | None, reference: float | None) -> str:
    """Write the relative change of a value against its reference: `-52 %`."""
    if value is None or not reference:
        return NONE
    relative = 100 * (value / reference - 1)
    digits = 1 if abs(relative) < 10 else 0
    return f"{signed(relative, digits)} %" if round(relative, digits) else "0 %"


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign; zero has none. A tie is rounded alike however its sum was taken."""
    rounded = round(round(value, 9), digits) + 0.0
    text = f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def quantity(value: float | None) -> str:
    """Write a count with three significant digits and a unit prefix: 40551872 is `40.6 M`."""
    if value is None:
        return NONE
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {prefix}"
    return f"{value:g}" if value == int(value) else significant(value)


def size(num_bytes: float | None) -> str:
    """Write bytes in decimal units: `1.1 MB`."""
    if num_bytes is None:
        return NONE
    text = quantity(num_bytes)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def milliseconds(value: float | None) -> str:
    """Write milliseconds with three significant digits."""
    return NONE if value is None else f"{significant(value)} ms"


def times(value: float | None) -> str:
    """Write a ratio such as a speed-up: `1.84x` with a multiplication sign."""
    return NONE if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def times_between(value: float | None, low: float | None, high: float | None) -> str:
    """Write a ratio, and its interval where it is known: `1.84x (1.79-1.90)`, with proper signs."""
    interval = "" if low is None or high is None else f" ({low:.2f}\N{EN DASH}{high:.2f})"
    return NONE if value is None else times(value) + interval


def p_text(value: float) -> str:
    """Write a p-value: `p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with a number of significant digits, without an exponent."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{float(text):.10f}".rstrip("0").rstrip(".")
    return text


def amount_text(ratio: float | None, budget: str | None) -> str:
    """Write the ratio to remove, `ratio 0.3`, or the budget to keep: `MACs ≤ 50 %`, `file ≤ 10 MB`."""
    if budget is not None:
        resource, _, limit = budget.partition("=")
        try:
            value = f"{float(limit):g} MB" if resource == "size_mb" else f"{100 * float(limit):g} %"
            return f"{_RESOURCES.get(resource, resource)} \N{LESS-THAN OR EQUAL TO} {value}"
        except ValueError:
            return budget
    return "unspecified" if ratio is None else f"ratio {ratio:g}"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: `1 trial`, `2 trials`, `3 classes`."""
    return counted(str(count), noun)


def counted(number: str, noun: str) -> str:
    """Write a number that is written out already with its noun: `1 point`, `0.5 points`, `1.0 points`, `1,200 images`.

    Args:
        number: The number.
        noun: The noun in the singular; `es` makes its plural where it ends in s.
    """
    return f"{number} {noun}" if number == "1" else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
