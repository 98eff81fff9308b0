"""How many workers a trial asks for when it has lost some: Ray hears of a node's end long after the node is gone."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray

from cleanai_ray.config.study import parse_study
from cleanai_ray.executors.ray import cluster

STUDY = parse_study(
    {
        "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
        "data": {"name": "digits"},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        "finetune": {"epochs": 1, "num_workers": 3},
    }
)


def node(port: int, cpus: float = 2, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port, "Resources": {"CPU": cpus}}


def test_a_node_that_answers_no_more_holds_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as here, socket.socket() as gone:
        here.bind(("127.0.0.1", 0))
        here.listen()
        gone.bind(("127.0.0.1", 0))  # nobody listens there
        nodes = [node(here.getsockname()[1]), node(gone.getsockname()[1]), node(1, alive=False)]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(cluster, "_nodes_to_come", list)
        assert cluster.workers_to_ask_for(STUDY) == 3
        assert cluster.workers_to_ask_for(STUDY, lost_some=True) == 2
        nodes.pop(0)
        assert cluster.workers_to_ask_for(STUDY, lost_some=True) == 1  # what is asked for at the least
        monkeypatch.setattr(cluster, "_nodes_to_come", lambda: [{"CPU": 2.0}])
        assert cluster.workers_to_ask_for(STUDY, lost_some=True) == 3
