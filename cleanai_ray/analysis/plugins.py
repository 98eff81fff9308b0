"""The plug-ins of a study whose report is made: what they register takes part in it."""

from __future__ import annotations

import logging

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import load_plugins

_LOG = logging.getLogger(__name__)


def load_plugins_of(study: StudyFrames) -> None:
    """Import the modules under `plugins` in a study file; one that is missing on this machine is a warning.

    A report must be possible years later, on another machine: without the module, it lacks what the module adds.
    """
    named = study.study.get("plugins") or ()
    for module in (name for name in named if isinstance(name, str)):
        try:
            load_plugins([module])
        except StudyError as error:
            _LOG.warning("the report of %s leaves out what a plug-in adds: %s", study.name, error)
