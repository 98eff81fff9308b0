"""What a job's own process may reserve: worked out by hand for clusters of a few nodes."""

from __future__ import annotations

from typing import Any

import pytest

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import ClusterError
from cleanai_ray.executors.ray.entry_point import EntryPoint, require_entry_point

HEAD = {"CPU": 0.0, "memory": 8e9, "node:10.0.0.1": 1.0}
CPU_NODE = {"CPU": 8.0, "memory": 32e9}
GPU_NODE = {"CPU": 4.0, "GPU": 1.0, "memory": 16e9}


def study_with(**resources: float) -> Any:
    return parse_study(
        {
            "name": "small",
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits", "calibration": {"samples": 64}},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
            "resources": resources,
        }
    )


@pytest.mark.parametrize(
    ("entry_point", "nodes", "trial"),
    [
        (EntryPoint(memory=8), [HEAD, CPU_NODE], {}),
        (EntryPoint(cpus=7), [CPU_NODE], {"cpus_per_trial": 1}),
        (EntryPoint(cpus=8), [CPU_NODE, GPU_NODE], {"cpus_per_trial": 4}),
        (EntryPoint(cpus=4, gpus=1), [CPU_NODE, GPU_NODE], {"cpus_per_trial": 8}),
        (EntryPoint(gpus=0.5), [GPU_NODE], {"gpus_per_trial": 0.5}),
    ],
)
def test_an_entry_point_that_fits_beside_a_trial_is_taken(entry_point, nodes, trial) -> None:
    require_entry_point(entry_point, study_with(**trial), nodes)


@pytest.mark.parametrize(
    ("entry_point", "nodes", "trial", "words"),
    [
        (EntryPoint(cpus=9), [HEAD, CPU_NODE], {}, ["--cpus is 9", "more than 8 CPUs"]),
        (EntryPoint(gpus=1), [HEAD, CPU_NODE], {}, ["--gpus is 1", "more than 0 GPUs"]),
        (
            EntryPoint(cpus=9, memory=33),
            [CPU_NODE, GPU_NODE],
            {},
            ["--cpus is 9", "more than 8 CPUs", "--memory is 33", "more than 32 GB of memory"],
        ),
        (
            EntryPoint(cpus=8, gpus=1),
            [CPU_NODE, CPU_NODE, GPU_NODE],
            {},
            ["8 CPUs and 1 GPU together", "8 CPUs, 0 GPUs, 32 GB of memory", "4 CPUs, 1 GPU, 16 GB of memory"],
        ),
        (EntryPoint(cpus=8), [CPU_NODE], {"cpus_per_trial": 1}, ["8 CPUs leave", "a trial's 1 CPU"]),
        (
            EntryPoint(gpus=1),
            [CPU_NODE, GPU_NODE],
            {"gpus_per_trial": 0.5},
            ["1 GPU leave", "a trial's 1 CPU and 0.5 GPUs"],
        ),
    ],
)
def test_an_entry_point_that_would_wait_for_ever_is_refused_with_the_numbers(entry_point, nodes, trial, words) -> None:
    with pytest.raises(ClusterError) as caught:
        require_entry_point(entry_point, study_with(**trial), nodes)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
