"""The exceptions of CleanAI-Ray: one root, one class a kind of fault.

Every message is one sentence that names the field or the layer, the value found and what is allowed. All of them
hold nothing but what their message is made of, so that they survive pickling across Ray processes unchanged.
"""

from __future__ import annotations


class CleanAIError(Exception):
    """Root of every error that CleanAI-Ray raises on purpose."""


class StudyError(CleanAIError, ValueError):
    """The study file or a command-line override is wrong."""


class RegistryError(CleanAIError, LookupError):
    """A name is unknown to a registry, or is registered twice."""


class DataError(CleanAIError):
    """A data set is missing, malformed, or holds a sample that cannot be read."""


class SampleError(DataError):
    """One sample cannot be read, while others of its data set can.

    Args:
        reason: What is wrong with it, in words that follow "sample '...'"; the whole message where `where` is null.
        where: The sample's path, or its file and row.
    """

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return self.reason if self.where is None else f"sample '{self.where}' {self.reason}"


class ModelError(CleanAIError):
    """A model cannot be built, or its weights do not fit it."""


class CalibrationError(CleanAIError):
    """A calibration pass could not be completed; the message says at which sample."""


class PruningError(CleanAIError):
    """A plan cannot be made for a model, or does not fit it."""


class TaskError(CleanAIError):
    """A task cannot do what was asked of it, or a library that it needs is missing."""


class EvaluationError(CleanAIError):
    """A measurement would not be true, for instance because a hook was left on the model."""


class ArtifactError(CleanAIError):
    """A run directory or a saved model is missing, incomplete, corrupted or foreign."""


class ClusterError(CleanAIError):
    """The study cannot be placed on the cluster that was found."""
