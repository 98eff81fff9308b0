"""Processes that are replaced because their GPU failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError

from cleanai_ray.errors import DeviceError
from cleanai_ray.executors.trial_work import SweepInputs, TrialDeviceError, describe_error
from cleanai_ray.nn.faults import is_device_fault
from cleanai_ray.stages.outcome import TrialOutcome


@contextmanager
def device_faults_named() -> Iterator[None]:
    """Raise a DeviceError for a fault of a GPU: torch's own error may not survive the way to another process."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        if is_device_fault(error):
            raise DeviceError(describe_error(error)) from None
        raise


@contextmanager
def faults_recorded(inputs: SweepInputs, report: Callable[[TrialOutcome], None]) -> Iterator[None]:
    """Record the trial during which a GPU fails for the second time; what the context raises, it raises.

    Args:
        inputs: The inputs of all trials.
        report: Called with the outcome of the failed trial.
    """
    try:
        yield
    except TrialDeviceError as error:
        outcome = inputs.fail_twice(error.trial, error)
        if outcome is not None:
            inputs.write(error.trial, outcome)
            report(outcome)
        raise


@contextmanager
def replaced_by_tune() -> Iterator[None]:
    """Have Tune end this process, and start its group of trials again in another, however often that has happened.

    Tune does both when a trial raises an error, and counts an actor that was lost with its node as no failure of the
    trial. Two faults of a trial at most lead here.
    """
    try:
        yield
    except DeviceError as error:
        # Unstable: Tune counts no error whose `preempted` is true.
        raise RayActorError(error_msg=f"a GPU failed: {error}", preempted=True) from None
