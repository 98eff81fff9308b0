"""The private and unstable interfaces of Ray that the executor uses exist in the installed version, as it uses them.

No Ray is started: a new version that moves or changes one of them fails here, with its name, rather than in a study.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import ray
import ray.train
from ray._private.node import Node
from ray._private.state import GlobalState
from ray.core.generated import autoscaler_pb2
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import PreemptionError
from ray.tune.experiment.trial import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable import wrap_function
from ray.util.state import list_nodes
from ray.util.state.common import NodeState
from ray.util.state.exception import RayStateApiException

from cleanai_ray.errors import DeviceError
from cleanai_ray.executors.ray.fresh_process import replaced_by_tune


def accepts(function: Any, *arguments: Any, **keywords: Any) -> bool:
    """Return whether a call fits the signature of a function."""
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError:
        return False
    return True


def test_the_node_of_this_process_is_none_without_ray_and_names_the_dashboard() -> None:
    node = ray.worker._global_node
    assert isinstance(node, Node) if ray.is_initialized() else node is None
    assert isinstance(inspect.getattr_static(Node, "webui_url"), property)


def test_free_resources_of_nodes_are_asked_for_without_arguments() -> None:
    assert accepts(ray._private.state.available_resources_per_node)


def test_the_configuration_of_an_autoscaler_names_resources_and_counts_of_each_kind_of_node() -> None:
    assert isinstance(ray._private.state.state, GlobalState)
    assert accepts(ray._private.state.state.get_cluster_config)
    config = autoscaler_pb2.ClusterConfig(
        node_group_configs=[autoscaler_pb2.NodeGroupConfig(resources={"CPU": 8}, max_count=2)]
    )
    (group,) = config.node_group_configs
    assert (dict(group.resources), group.max_count) == ({"CPU": 8}, 2)


def test_a_start_that_times_out_and_a_node_that_leaves_are_errors_of_ray_train() -> None:
    assert issubclass(WorkerGroupStartupTimeoutError, Exception)
    assert issubclass(PreemptionError, ray.train.TrainingFailedError)


def test_failures_of_a_training_name_those_of_the_workers_or_of_the_controller() -> None:
    cause = ValueError("no")
    of_workers = ray.train.WorkerGroupError("two failed", {1: cause})
    of_controller = ray.train.ControllerError(cause)
    assert all(isinstance(error, ray.train.TrainingFailedError) for error in (of_workers, of_controller))
    assert of_workers.worker_failures == {1: cause}
    assert of_controller.controller_failure is cause


def test_a_trainer_takes_the_limits_of_failures_and_the_callback_of_tune() -> None:
    limits = FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0)
    config = ray.train.RunConfig(failure_config=limits)
    assert config.failure_config is limits
    assert accepts(TuneReportCallback)


def test_the_class_that_tune_makes_of_a_function_has_the_name_it_is_given() -> None:
    assert accepts(wrap_function, lambda config: None, name="trials of a study")


def test_nodes_are_listed_with_their_state_and_resources() -> None:
    assert accepts(list_nodes, address="http://127.0.0.1:8265")
    assert {"state", "resources_total"} <= {field.name for field in dataclasses.fields(NodeState)}
    assert issubclass(RayStateApiException, Exception)


def test_a_job_is_submitted_with_resources_and_ends_with_the_exit_code_of_its_driver() -> None:
    client = JobSubmissionClient
    resources = {"entrypoint_num_cpus": 1.0, "entrypoint_num_gpus": None, "entrypoint_memory": 10**9}
    assert accepts(client.submit_job, None, entrypoint="true", runtime_env={}, **resources)
    assert accepts(client.get_job_info, None, "job")
    assert inspect.isasyncgenfunction(client.tail_job_logs)
    names = getattr(JobDetails, "model_fields", None) or getattr(JobDetails, "__fields__", {})
    assert {"driver_exit_code", "message", "status"} <= set(names)
    assert ray.exceptions.AuthenticationError("no token").message.startswith("no token")


def test_tune_counts_no_failure_of_an_actor_that_was_preempted() -> None:
    """Neither when the error comes as that of a task, by way of pickle."""
    with pytest.raises(ray.exceptions.RayActorError) as found, replaced_by_tune():
        raise DeviceError("CUDA error")
    trial = Trial("a name", stub=True)
    for preempted in (True, False):
        cause = pickle.loads(pickle.dumps(found.value))
        cause._preempted = preempted
        trial._handle_ray_task_error(ray.exceptions.RayTaskError("train", "trace", cause))
        assert trial.run_metadata.num_failures == int(not preempted)
