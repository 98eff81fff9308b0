"""Which cluster a study joins: the one it is told, else the environment's, else a Ray of its own."""

from __future__ import annotations

import re
import socket

import pytest

from cleanai_ray.errors import ClusterError
from cleanai_ray.executors.ray import cluster


@pytest.mark.parametrize(
    ("given", "environment", "joined"),
    [
        (None, None, None),
        (None, "", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),  # which Ray itself looks up in the environment
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        ("local", "10.0.0.1:6379", None),
        (None, "local", None),
        ("auto", "http://10.0.0.1:8265", "auto"),
    ],
)
def test_what_is_given_comes_before_the_environment(
    given: str | None, environment: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert cluster._given_or_environments(given) == joined


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "https://ray.example.com", "ray://10.0.0.1:10001"])
@pytest.mark.parametrize("is_given", [True, False])
def test_addresses_of_other_servers_are_refused_before_ray_starts(
    address: str, is_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "" if is_given else address)
    monkeypatch.setattr(cluster.ray, "init", lambda **given: pytest.fail("Ray was started"))
    with pytest.raises(ClusterError) as caught, cluster.connected(address if is_given else None):
        pass
    name = "the cluster's address" if is_given else "RAY_ADDRESS"
    assert str(caught.value).startswith(f"{name} is '{address}'; allowed: 'auto', or host:port of a cluster's head")
    assert "cleanai submit" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_an_address_where_nothing_listens_is_an_error_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "init", lambda **given: pytest.fail("Ray would try for minutes"))
    with socket.socket() as bound:  # it has a port, and accepts nothing
        bound.bind(("127.0.0.1", 0))
        address = f"{host}:{bound.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"no Ray cluster answers at '{re.escape(address)}': "):
            cluster.connected(address).__enter__()


def test_a_port_beyond_the_last_is_an_error() -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at '127\.0\.0\.1:99999': "):
        cluster.connected("127.0.0.1:99999").__enter__()
