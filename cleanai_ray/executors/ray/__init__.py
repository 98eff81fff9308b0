"""The Ray executor: a study on a cluster, or on the cores of this machine. Only this package imports ray."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cleanai_ray.config.study import Study
from cleanai_ray.executors.base import Executor
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.storage.run_directory import RunDirectory


@EXECUTORS.register("ray")
def open_ray(study: Study, run: RunDirectory, address: str | None = None) -> AbstractContextManager[Executor]:
    """In parallel with Ray, on the GPUs and cores of a cluster or of this machine (the default).

    Raises:
        ClusterError: When no cluster answers at the address.
    """
    from cleanai_ray.executors.ray.executor import connect  # ray takes seconds to import

    return connect(study, run, address)
