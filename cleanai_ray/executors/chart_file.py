"""A chart that an executor draws of what it measured, beside the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from altair.typing import ChartType


def write_chart(run: RunDirectory, name: str, draw: Callable[[], ChartType | None], progress: ProgressReporter) -> None:
    """Write a chart; if it cannot be drawn, say why, since the table is there without it.

    Args:
        run: The run directory.
        name: The chart's file in it.
        draw: Draws the chart, or returns None where there is none. It imports what it needs, and nothing else has to.
        progress: What the reason is said to.
    """
    try:
        chart = draw()
        if chart is None:
            return
        from cleanai_ray.charts import style

        run.write_bytes(name, style.to_svg(chart).encode())
    except Exception as error:  # a font or a library may raise anything
        run.delete(name)
        progress.say(f"{name} could not be drawn ({type(error).__name__}: {' '.join(str(error).split())})")
