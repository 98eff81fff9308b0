"""The question that a study asks first, declared before it runs."""

from __future__ import annotations

from pydantic import Field, field_validator

from cleanai_ray.config.messages import name_among
from cleanai_ray.config.section import Section
from cleanai_ray.registry import METRICS, QUESTIONS


class QuestionsSection(Section):
    """The primary question and metric; everything else that a report answers is called exploratory."""

    primary: str | None = Field(
        None, description="The question that is tested alone, at 5 %: its short name, a, b1, b2, ...; null: none is."
    )
    coverage_metric: str | None = Field(
        None, description="The metric that questions about coverage are about; null: the mean of all that were swept."
    )

    @field_validator("primary", mode="after")
    @classmethod
    def _check_primary(cls, primary: str | None) -> str | None:
        if primary is not None and primary not in QUESTIONS.names():
            choices = name_among(primary, QUESTIONS.names())
            raise ValueError(f"questions.primary: '{primary}' is not a question; {choices}")
        return primary

    @field_validator("coverage_metric", mode="after")
    @classmethod
    def _check_metric(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS.names():
            choices = name_among(metric, METRICS.names())
            raise ValueError(f"questions.coverage_metric: '{metric}' is not a coverage metric; {choices}")
        return metric
