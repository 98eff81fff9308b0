"""The trial that a name on the command line stands for: its id, `recommended` or `best`."""

from __future__ import annotations

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.errors import ArtifactError

RECOMMENDED, BEST = "recommended", "best"
NAMES = (RECOMMENDED, BEST)


def named_trial(study: StudyFrames, name: str) -> str:
    """Return the id of a trial that succeeded.

    Args:
        study: The study.
        name: A trial's id; `recommended`: the trial that the report recommends; `best`: that one or, where none can be
            recommended, the most accurate on the images that decide.

    Raises:
        ArtifactError: When no trial of the study has this name, or none succeeded or is recommended.
    """
    if name not in NAMES:
        found = study.ok["trial_id"].to_list()
        if name not in found:
            raise ArtifactError(
                f"study '{study.name}' has no trial '{name}' that succeeded; allowed: {', '.join((*NAMES, *found))}"
            )
        return name
    choice = study.choice
    if choice.trial is None:
        raise ArtifactError(f"no trial of study '{study.name}' succeeded, so there is no {name} one")
    if name == RECOMMENDED and not choice.is_recommended:
        reasons = choice.recommendation.in_full.rstrip(".")
        raise ArtifactError(f"study '{study.name}' has no recommended trial ({reasons}); `best` has one")
    return str(choice.trial["trial_id"])
