"""A study as a job of a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys

from ray.job_submission import JobStatus, JobSubmissionClient

from cleanai_ray.errors import ClusterError

_EXCLUDED = [".git", ".venv", "artifacts", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__"]


def submit_study(study: str, *, address: str, out: str | None, overrides: list[str], fresh: bool) -> int:
    """Submit a study with the current folder as working directory, stream the job's log, and return its exit code.

    Args:
        study: Study file, relative to the current folder.
        address: The dashboard's address, `http://HEAD:8265`.
        out: Run directory on the cluster.
        overrides: `a.b=c` overrides.
        fresh: Compute everything anew.

    Raises:
        ClusterError: When the cluster does not answer.
    """
    words = ["python", "-m", "cleanai_ray", "run", os.path.relpath(study), "--address", "auto"]
    words += ["--out", out] if out else []
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--fresh"] if fresh else []
    environment = {"working_dir": os.getcwd(), "excludes": _EXCLUDED}
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(words), runtime_env=environment)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster takes jobs at '{address}': {' '.join(str(error).split())}") from error
    asyncio.run(_stream(client, job))
    status = client.get_job_status(job)
    if status == JobStatus.SUCCEEDED:
        return 0
    code = client.get_job_info(job).driver_exit_code
    return code if code else 1


async def _stream(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stdout.write(text)
        sys.stdout.flush()
