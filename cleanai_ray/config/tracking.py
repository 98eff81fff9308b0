"""The trackers that a study reports to, besides its run directory."""

from __future__ import annotations

from pydantic import Field

from cleanai_ray.config.section import Section


class TrackingSection(Section):
    """The trackers that Ray reports trials to; what a study computes does not depend on them.

    Each trial is a run under its own id, with everything that defines it as parameters, its epochs, and its accuracy,
    loss, parameters and MACs at the end.
    """

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="Tracking URI of MLflow; runs are in the experiment of the study's name.",
    )
    wandb: str | None = Field(
        None, min_length=1, description="Project of Weights & Biases; runs are in the group of the study's name."
    )
    tensorboard: bool = Field(True, description="Event files for TensorBoard, in DIR/tune.")

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the trackers that need a package of their own."""
        return tuple(name for name in ("mlflow", "wandb") if getattr(self, name) is not None)
