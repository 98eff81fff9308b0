"""The exceptions of CleanAI-Ray: one root class, and a class for each kind of fault.

Every message is one sentence that names the field or the layer, the value found and what is allowed. Exceptions hold
only the parts of their message, so that they survive pickling between Ray processes unchanged.
"""

from __future__ import annotations

from typing import ClassVar


class CleanAIError(Exception):
    """Root of every error that CleanAI-Ray raises on purpose.

    Attributes:
        in_all_processes: True if all processes that train or score together raise it, so that none waits for another.
    """

    in_all_processes: ClassVar[bool] = False


class StudyError(CleanAIError, ValueError):
    """The study file or a command-line override is wrong."""


class RegistryError(CleanAIError, LookupError):
    """A name is unknown to a registry or registered twice, or a plug-in cannot be loaded."""


class DataError(CleanAIError):
    """A data set is missing, malformed, or holds a sample that cannot be read."""


class SampleError(DataError):
    """One sample cannot be read, while others of its data set can.

    Args:
        reason: What is wrong with it, in words that follow "sample '...'"; the whole message if `where` is None.
        where: The sample's path, or its file and row.
    """

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return self.reason if self.where is None else f"sample '{self.where}' {self.reason}"


class ShareError(DataError):
    """Samples cannot be shared out among processes."""

    in_all_processes = True


class ModelError(CleanAIError):
    """A model cannot be built, or its weights do not fit it."""


class CalibrationError(CleanAIError):
    """A calibration pass could not be completed; the message says at which sample."""


class PruningError(CleanAIError):
    """A plan cannot be made for a model, or does not fit it."""


class TaskError(CleanAIError):
    """A task cannot do what it is asked to do, or a library that it needs is missing."""


class EvaluationError(CleanAIError):
    """A measurement would be wrong, for instance because a hook was left on the model."""


class ScoreError(EvaluationError):
    """What all processes have predicted has no score."""

    in_all_processes = True


class ArtifactError(CleanAIError):
    """A run directory or a saved model is missing, incomplete, corrupted or not one of ours."""


class ReportError(CleanAIError):
    """A report lacks a part; the tables it is made from, and its other parts, were written."""


class ClusterError(CleanAIError):
    """The study does not fit the cluster."""


class DeviceError(CleanAIError):
    """A GPU failed while a process used it, so that the work has to be done again by another process."""
