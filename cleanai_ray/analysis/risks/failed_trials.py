"""Risk: trials that failed."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("failed_trials")
class FailedTrials(Check):
    """Trials that failed, with their errors."""

    position = 10
    looks_for = "failed trials"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists every error; blocking where every trial failed."""
        count, total = len(study.failed), len(study.results)
        if not count:
            return
        details = _errors(study)
        if count == total:
            sentence = (
                "The only trial failed." if total == 1 else f"All {total} trials failed; there is no result to use."
            )
            yield Risk("high", "failed trials", sentence, details, is_blocking=True)
        else:
            sentence = f"{count} of {plural(total, 'trial')} failed; no comparison includes them."
            yield Risk("medium", "failed trials", sentence, details)


def _errors(study: StudyFrames) -> tuple[str, ...]:
    trials: dict[str, list[str]] = {}
    for trial_id, error in study.failed.select("trial_id", "error").rows():
        trials.setdefault(error or "no error was recorded", []).append(trial_id)
    return tuple(f"{error} ({', '.join(names)})" for error, names in trials.items())
