"""A server on this machine alone that shows a run directory: its status, kept up to date, and its report."""

from __future__ import annotations

import datetime
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import STATUS_FILE, StudyStatus, describe, read_status, utc_now

REPORT = "report.html"
_HOST = "127.0.0.1"
_OWN_NAMES = (_HOST, "localhost")
_SERVED = re.compile(r"report\.html|report\.pdf|charts/[A-Za-z0-9_-]+\.svg")
_TYPES = {"html": "text/html; charset=utf-8", "pdf": "application/pdf", "svg": "image/svg+xml"}


class PageServer(ThreadingHTTPServer):
    """Serves one page, the status behind it, and the files of the report; nothing else of the run directory.

    It listens on this machine alone, and answers no page of another site that a browser has open.

    Args:
        run: The run directory.
        port: The port; 0 for any that is free.

    Raises:
        ArtifactError: When the directory holds neither the status of a study nor a report.
        OSError: When the port cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, run: RunDirectory, port: int = 0) -> None:
        if not run.exists(REPORT):
            read_status(run)
        self.directory = run
        super().__init__((_HOST, port), _Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_HOST}:{self.server_port}/"


def live_state(run: RunDirectory, now: datetime.datetime) -> dict[str, Any]:
    """Return what the page shows, as JSON-like values.

    Its keys are `state` (`running`, `finished`, `failed`, `stopped`, or `unknown` where there is no status), `lines`
    (headings and values, as `cleanai status` prints them), `bars` (done and total of `shards` and `trials`), and
    `report` (true if there is one).

    Raises:
        ArtifactError: When the status cannot be read.
    """
    has_report = run.exists(REPORT)
    if not run.exists(STATUS_FILE):
        return {"state": "unknown", "lines": {}, "bars": {}, "report": has_report}
    status = read_status(run)
    is_stopped = status.state == "running" and not status.is_alive(now)
    return {
        "state": "stopped" if is_stopped else status.state,
        "lines": describe(status, now),
        "bars": _bars(status),
        "report": has_report,
    }


def _bars(status: StudyStatus) -> dict[str, tuple[int, int]]:
    bars = {"trials": (status.trials_done + status.trials_failed, status.trials_total)}
    if status.shards_done is not None and status.shards_total:
        bars["shards"] = (status.shards_done, status.shards_total)
    if status.epochs_done is not None and status.epochs_total:
        bars["epochs"] = (status.epochs_done, status.epochs_total)
    return bars


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        """Answer with the page, the status or a file of the report."""
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _OWN_NAMES:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        name = urlsplit(self.path).path.removeprefix("/")
        try:
            content = self._content(name)
        except ArtifactError as error:
            self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
            return
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send(*content)

    def _content(self, name: str) -> tuple[str, bytes] | None:
        """Return the type and content of what a path names; None where it names nothing."""
        run = self.server.directory
        if name == "":
            page = resources.files("cleanai_ray.commands") / "page.html"
            return _TYPES["html"], page.read_bytes()
        if name == "status":
            return "application/json", json.dumps(live_state(run, utc_now())).encode()
        if _SERVED.fullmatch(name):
            return _TYPES[name.rpartition(".")[2]], run.read_bytes(name)
        return None

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the study's."""
