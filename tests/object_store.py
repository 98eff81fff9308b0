"""A real S3-compatible server in a process of its own, on this machine's loopback."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a client of the server needs in its environment."""

_SECONDS_TO_START = 60


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server.

    Attributes:
        port: Where it listens on 127.0.0.1.
        bucket: The bucket that it has.
    """

    port: int
    bucket: str = "bucket"

    def url(self, prefix: str) -> str:
        """Return the URL of a prefix or object, as a study names it."""
        query = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return f"s3://{self.bucket}/{prefix}?{query}"

    def request(self, method: str, path: str) -> int:
        """Send an unsigned request, and return the status of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, headers={"Host": "s3.us-east-1.amazonaws.com"})
            return connection.getresponse().status
        finally:
            connection.close()


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """Run a server with one empty bucket; it forgets everything when it is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = ObjectStore(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store.port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(store, process)
        assert store.request("PUT", f"/{store.bucket}") == 200
        yield store
    finally:
        process.kill()
        process.wait()


def _wait(store: ObjectStore, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            store.request("GET", "/moto-api/")
            return
        except OSError:
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
