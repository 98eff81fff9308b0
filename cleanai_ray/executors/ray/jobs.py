"""A study as a job of a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state.exception import RayStateApiException

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ClusterError
from cleanai_ray.executors.ray.entry_point import EntryPoint, node_resources, require_entry_point

_EXCLUDED = [
    ".git",
    ".venv",
    "venv",
    "/artifacts",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
]
_EXIT_INTERRUPTED = 130
_CONNECTION_ERRORS = (OSError, RuntimeError, ValueError, aiohttp.ClientError, RayStateApiException)


@dataclass(frozen=True, kw_only=True)
class _Job:
    client: JobSubmissionClient
    address: str
    name: str

    def command(self, action: str) -> str:
        return shlex.join(["ray", "job", *action.split(), "--address", self.address, self.name])


def submit_study(
    path: str,
    study: Study,
    *,
    address: str,
    options: Sequence[str],
    entry_point: EntryPoint,
) -> int:
    """Submit a study with the current folder as working directory, stream the job's log, and return its exit code.

    Args:
        path: Study file, in the current folder or below it.
        study: The study in the file, with the overrides.
        address: The dashboard's address, `http://HEAD:8265`.
        options: Options of `cleanai run` on the cluster.
        entry_point: The resources that the job's own process reserves.

    Returns:
        The exit code of the job's process; 1 if there is none; 130 if the log was interrupted.

    Raises:
        ClusterError: When the cluster does not answer, refuses the token, or has no room for the entry point.
    """
    words = ["python", "-m", "cleanai_ray", "run", _path_in_working_directory(path), "--address", "auto", *options]
    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"--address is '{address}'; allowed: the address of a dashboard, as in http://HEAD:8265")
    job = None
    try:
        job = _submit(words, study, address, entry_point)
        _write(f"job {job.name}\n")
        _warn_of_temporary_results(study.output.dir)
        return _exit_code(_follow(job), job)
    except KeyboardInterrupt:
        if job is None:
            raise
        follow, stop = job.command("logs --follow"), job.command("stop")
        _say(f"job {job.name} continues; to follow its log: `{follow}`; to stop it: `{stop}`")
        return _EXIT_INTERRUPTED


def _path_in_working_directory(path: str) -> str:
    relative = os.path.relpath(path)
    if PurePath(relative).parts[:1] == ("..",):
        raise ClusterError(
            f"study file '{path}' is outside '{os.getcwd()}', the folder that is copied to the job; "
            "allowed: a file in the current folder or below it"
        )
    return relative


def _warn_of_temporary_results(directory: str) -> None:
    if "://" not in directory and not os.path.isabs(directory):
        _say(
            f"warning: output.dir is '{directory}', inside the job's copy of this folder, which Ray deletes sooner or "
            "later; to keep the results, give --out an absolute path or a URL"
        )


def _submit(words: list[str], study: Study, address: str, entry_point: EntryPoint) -> _Job:
    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # In Ray, these variables take precedence over the address argument.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        client = JobSubmissionClient(address)
        if entry_point != EntryPoint():
            require_entry_point(entry_point, study, node_resources(address))
        job = client.submit_job(
            entrypoint=shlex.join(words),
            runtime_env={"working_dir": os.getcwd(), "excludes": _EXCLUDED},
            entrypoint_num_cpus=entry_point.cpus or None,
            entrypoint_num_gpus=entry_point.gpus or None,
            entrypoint_memory=entry_point.memory_bytes or None,
        )
    except AuthenticationError as error:
        raise ClusterError(_describe_token_error(address, error)) from error
    except _CONNECTION_ERRORS as error:
        raise ClusterError(f"no Ray cluster accepts jobs at '{address}': {' '.join(str(error).split())}") from error
    return _Job(client=client, address=address, name=job)


def _describe_token_error(address: str, error: AuthenticationError) -> str:
    reason = error.message.splitlines()[0].partition(". ")[0]
    return (
        f"the cluster at '{address}' accepts jobs only with its token: {reason}; needed: RAY_AUTH_MODE=token (it is "
        f"{os.environ.get('RAY_AUTH_MODE', 'not set')}) and the cluster's token in RAY_AUTH_TOKEN, or in the file that "
        "RAY_AUTH_TOKEN_PATH names"
    )


def _follow(job: _Job) -> JobDetails:
    """Stream the log until the job ends; if the stream breaks first, wait for the end."""
    try:
        try:
            _stream_log(job)
        except _CONNECTION_ERRORS as error:
            _say(f"the log of job {job.name} was cut off ({error or type(error).__name__}); waiting for the job's end")
        while not (details := job.client.get_job_info(job.name)).status.is_terminal():
            time.sleep(2)
    except (AuthenticationError, *_CONNECTION_ERRORS) as error:
        raise ClusterError(
            f"'{job.address}' no longer answers ({' '.join(str(error).split())}), so it is unknown how job {job.name} "
            f"ends; its log, once the cluster answers: `{job.command('logs --follow')}`"
        ) from error
    return details


class _Interrupt:
    """A handler of SIGINT that cancels the task that streams a log, at once or as soon as it begins.

    A KeyboardInterrupt could strike anywhere, even while the event loop is being made, and leave it half-made. The
    second SIGINT does raise one: while the terminal blocks output, the task never gets to see its cancellation.
    """

    def __init__(self) -> None:
        self.came = False
        self._task: asyncio.Task | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        if self._task is not None and not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def stream(self, job: _Job) -> None:
        self._task = asyncio.current_task()
        if not self.came:
            async for text in job.client.tail_job_logs(job.name):
                _write(text)


def _stream_log(job: _Job) -> None:
    interrupt = _Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        asyncio.run(interrupt.stream(job))
    except (asyncio.CancelledError, *_CONNECTION_ERRORS):
        if not interrupt.came:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt.came:
        raise KeyboardInterrupt


def _exit_code(details: JobDetails, job: _Job) -> int:
    code = details.driver_exit_code
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if code is None:
        _say(f"job {job.name} is {details.status.value}: {' '.join((details.message or '').split())}")
        return 1
    return 128 - code if code < 0 else code or 1


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(sentence: str) -> None:
    sys.stderr.write(f"cleanai: {sentence}\n")
