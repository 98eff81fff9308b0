"""Durations in words."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """Return a duration as `0.4 s`, `45 s`, `3 min 05 s` or `2 h 05 min`; tenths only below ten seconds."""
    if 0 <= seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
