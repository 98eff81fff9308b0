"""Who gets which resources: tables of clusters and what is decided for them, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import DeviceError, StudyError
from cleanai_ray.executors.placement import (
    SHARES,
    Allotment,
    Room,
    cpus_per_gpu,
    gpu_share,
    idle_advice,
    places,
    shared_out,
    unused_gpus,
)
from cleanai_ray.executors.ray import cluster, executor, trial_workers
from cleanai_ray.executors.ray.trial_config import configurations, group_of, takes_workers, workers_wanted
from cleanai_ray.executors.trial_work import groups_to_run

GIB = 2**30
BIG = {"CPU": 16.0, "GPU": 1.0}
SMALL, LARGE = (1, 32, 32), (3, 224, 224)
STUDY: dict[str, Any] = {
    "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
    "data": {"name": "digits", "batch_size": 128},
    "sweep": {"methods": ["magnitude", "random"], "ratios": [0.1, 0.2, 0.3, 0.4, 0.5]},
    "finetune": {"epochs": 1, "num_workers": "auto"},
    "resources": {"gpus_per_trial": 1},
}


def room(nodes: list[dict[str, float]], num_trials: int = 100, **values: Any) -> Room:
    given: dict[str, Any] = {"gpu_bytes": 80 * GIB, "cpus_per_trial": 1, **values}
    return Room(nodes=nodes, num_trials=num_trials, **given)


def never() -> int:
    raise AssertionError("measured in vain")


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([BIG], 1, 0, 16),
        ([BIG], 1, 0.25, 4),
        ([BIG], 8, 0.25, 2),
        ([{"CPU": 64.0, "GPU": 8.0}], 8, 1, 8),
        ([{"CPU": 64.0, "GPU": 8.0}], 4, 2, 4),
        ([BIG, {"CPU": 8.0}], 4, 0.5, 2),
        # A worker's 0.4 lie on one GPU: two fit on each, and a fifth of each is left over.
        ([{"CPU": 16.0, "GPU": 2.0}], 1, 0.4, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 0, 2),
        ([{}], 1, 0, 0),
    ],
)
def test_workers_have_room_on_one_node_and_a_fraction_on_one_gpu(
    nodes: list[dict[str, float]], cpus: float, gpus: float, expected: int
) -> None:
    assert places(nodes, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("given", "needed", "expected", "words"),
    [
        (room([BIG]), 9 * GIB, 0.125, "needs about 9.0 GiB of a GPU's 80.0 GiB"),
        (room([BIG]), 10 * GIB, 0.125, "10.0 GiB"),
        (room([BIG]), 11 * GIB, 0.25, "11.0 GiB"),
        (room([BIG]), 21 * GIB, 0.5, "21.0 GiB"),
        (room([BIG]), 41 * GIB, 1, "41.0 GiB"),
        (room([BIG]), 90 * GIB, 1, "needs about 90.0 GiB, and a GPU has 80.0 GiB"),
        # Four trials on a GPU, or eight with two cores each on 16 cores, find a place with larger shares.
        (room([BIG], 4), GIB, 0.25, "no more than 4 run at a time"),
        (room([BIG], 1), GIB, 1, "no more than 1 runs at a time"),
        (room([BIG], 2), 41 * GIB, 1, "41.0 GiB"),
        (room([BIG], cpus_per_trial=4), GIB, 0.25, "no more than 4 run"),
        (room([BIG], most_at_once=2), GIB, 0.5, "no more than 2 run"),
        (room([BIG, BIG], 8), GIB, 0.25, "no more than 8 run"),
    ],
)
def test_a_small_input_gets_the_share_whose_memory_suffices(
    given: Room, needed: int, expected: float, words: str
) -> None:
    share, reason = gpu_share(given, lambda: needed, SMALL)
    assert share == expected
    assert words in reason


@pytest.mark.parametrize(
    ("given", "shape", "expected", "words"),
    [
        (room([BIG]), LARGE, 1, "224 x 224"),
        (room([BIG]), (3, 128, 128), 1, "128 x 128"),
        (room([BIG], gpu_bytes=None), SMALL, 1, "not known"),
        (room([BIG], workers_per_trial=2), SMALL, 1, "cannot share"),
        (room([{"CPU": 16.0}]), LARGE, 0, "has none"),
        (room([{"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}], cpus_per_trial=8), LARGE, 0, "beside the 8 CPUs"),
    ],
)
def test_memory_is_measured_only_where_it_decides(
    given: Room, shape: tuple[int, ...], expected: float, words: str
) -> None:
    share, reason = gpu_share(given, never, shape)
    assert share == expected
    assert words in reason


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64), st.integers(1, 16), st.floats(0.1, 100))
def test_a_share_has_the_memory_and_costs_no_place(
    num_cpus: int, num_gpus: int, num_trials: int, cpus: int, gib: float
) -> None:
    found = room([{"CPU": float(num_cpus), "GPU": float(num_gpus)}], num_trials, cpus_per_trial=cpus)
    share, _ = gpu_share(found, lambda: int(gib * GIB), SMALL)
    if num_cpus < cpus:
        assert share == 0
        return
    assert share in SHARES
    assert share == 1 or gib <= share * 80
    least = next((one for one in SHARES if gib <= one * 80), 1)
    at_once = min(num_trials, places(found.nodes, cpus, least))
    assert min(num_trials, places(found.nodes, cpus, share)) == at_once


def test_a_user_is_told_what_was_chosen_and_which_gpus_idle() -> None:
    chosen = Allotment(cpus=1, gpus=0.25, reason="a trial needs about 9.0 GiB", advice="3 GPUs will be idle")
    assert chosen.sentences() == ["GPUs per trial: 0.25, since a trial needs about 9.0 GiB", "3 GPUs will be idle"]
    assert chosen.record()["gpus_per_trial"] == 0.25
    assert Allotment(cpus=1, gpus=2).sentences() == []
    assert Allotment(cpus=1, gpus=2).record() == {"cpus_per_trial": 1, "gpus_per_trial": 2}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (unused_gpus(2, 2, uses_gpus=False), ["2 GPUs will be idle", "gpus_per_trial is 0", "`auto`"]),
        (unused_gpus(1, 0, uses_gpus=True), ["lists 1 GPU,", "torch finds none", "CPUs"]),
        (unused_gpus(1, 1, uses_gpus=True), []),
        (unused_gpus(0, 0, uses_gpus=False), []),
        (idle_advice(room([{"CPU": 64.0, "GPU": 8.0}], 3), 1, fine_tunes=True), ["5 of", "8 GPUs", "num_workers"]),
        (idle_advice(room([{"CPU": 64.0, "GPU": 8.0}], 7), 1, fine_tunes=False), ["1 of", "7 trials"]),
        (idle_advice(room([{"CPU": 64.0, "GPU": 8.0}], 4, workers_per_trial=2), 1, fine_tunes=True), []),
        (idle_advice(room([{"CPU": 64.0, "GPU": 8.0}], 9), 1, fine_tunes=True), []),
        (idle_advice(room([{"CPU": 64.0, "GPU": 2.0}], 4), 0.25, fine_tunes=True), ["1 of the cluster's 2 GPUs"]),
        (idle_advice(room([{"CPU": 64.0}], 4), 0, fine_tunes=True), []),
    ],
)
def test_idle_gpus_are_told_of_in_one_sentence(found: str, words: list[str]) -> None:
    assert bool(found) == bool(words)
    assert all(word in found for word in words)
    assert found.count("\n") == 0


def test_a_gpu_is_fed_by_its_part_of_the_nodes_cores() -> None:
    assert cpus_per_gpu([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}, {"CPU": 12.0, "GPU": 1.0}]) == 8
    assert cpus_per_gpu([{"CPU": 2.0, "GPU": 4.0}]) == 1
    assert cpus_per_gpu([{"CPU": 64.0}]) == 1


def last_workers(num_trials: int, num_places: int, **changes: Any) -> list[int]:
    """Return how many workers each trial of a study takes on a cluster."""
    study = parse_study({**STUDY, **changes, "sweep": {**STUDY["sweep"], "seeds": list(range(5))}})
    groups = groups_to_run(study, study.trials())[:num_trials]
    found = [{"trials": config} for config in configurations(study, groups, num_places)]
    assert [group_of(config) for config in found] == groups
    wanted = [workers_wanted(study, config, num_places) for config in found]
    assert [takes_workers(study, config) for config in found] == [workers > 1 for workers in wanted]
    return wanted


@pytest.mark.parametrize(
    ("num_trials", "num_places", "expected"),
    [
        (10, 8, [1] * 8 + [4, 4]),
        (8, 8, [1] * 8),
        (3, 8, [2, 3, 3]),
        (1, 8, [8]),
        (13, 8, [1] * 9 + [2, 1, 2, 2]),
        (1, 100, [8]),  # 128 images a batch, and 16 for each worker at least
        (10, 1, [1] * 10),
    ],
)
def test_the_last_trials_share_out_the_gpus(num_trials: int, num_places: int, expected: list[int]) -> None:
    assert last_workers(num_trials, num_places) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune": {"epochs": 1}},
        {"finetune": {"num_workers": "auto"}},
        {"resources": {"gpus_per_trial": 0.5}},
        {"resources": {"gpus_per_trial": 0}},
    ],
)
def test_trials_take_one_worker_where_several_are_not_asked_for_or_would_share_a_gpu(changes: dict[str, Any]) -> None:
    assert last_workers(3, 8, **changes) == [1, 1, 1]


@given(st.integers(1, 100), st.integers(1, 100))
def test_places_are_shared_out_evenly_and_wholly(num_places: int, num_trials: int) -> None:
    found = shared_out(num_places, num_trials)
    assert len(found) == num_trials
    if num_trials <= num_places:
        assert sum(found) == num_places
        assert max(found) - min(found) <= 1
    else:
        assert set(found) == {1}


def test_a_share_counts_the_places_that_the_cluster_has_when_the_trial_starts() -> None:
    study = parse_study(STUDY)
    *_, config = configurations(study, groups_to_run(study, study.trials()), 4)
    assert config["share"] == [1, 2]
    assert [workers_wanted(study, {"trials": config}, now) for now in (4, 2, 1, 7)] == [2, 1, 1, 4]


def test_a_share_is_waited_for_without_holding_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    study = parse_study(STUDY)
    *_, config = configurations(study, groups_to_run(study, study.trials()), 4)
    free, slept = iter([0, 1, 2]), []
    monkeypatch.setattr(trial_workers, "places_for_workers", lambda study: 4)
    monkeypatch.setattr(trial_workers, "free_places", lambda study: next(free))
    monkeypatch.setattr(trial_workers.time, "sleep", slept.append)
    assert trial_workers._wait_for_share(study, {"trials": config}) == 2
    assert len(slept) == 2


def on_cluster(node: dict[str, float], gpu_bytes: tuple[int, ...] = ()) -> executor.RayExecutor:
    connected = cluster.Cluster(
        num_nodes=1,
        cpus=node["CPU"],
        gpus=node.get("GPU", 0),
        node_cpus=node["CPU"],
        nodes=(node,),
        dashboard="",
        driver_node="",
    )
    return executor.RayExecutor(connected, None, None, gpu_bytes)  # type: ignore[arg-type]


def test_auto_becomes_a_number_that_only_the_sweep_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes_to_come", list)
    study = parse_study({**STUDY, "finetune": {}, "resources": {}})
    assert study.resources.gpus_per_trial == "auto"
    card = on_cluster(BIG, (80 * GIB, 24 * GIB))
    assert card.notices(study) == []
    assert card.allot(study, 10, lambda: 3 * GIB).gpus == 0.125
    assert card._with_numbers(study).resources.gpus_per_trial == 0.125
    assert card.allot(study, 10, lambda: 4 * GIB).gpus == 0.25
    whole = parse_study({**STUDY, "resources": {"gpus_per_trial": 1}})
    assert card.allot(whole, 10, never) == Allotment(cpus=1, gpus=1)
    none = parse_study({**STUDY, "finetune": {}, "resources": {"gpus_per_trial": 0}})
    assert card.allot(none, 10, never) == Allotment(cpus=1, gpus=0)
    assert "will be idle" in card.notices(none)[0]


def test_gpus_that_torch_does_not_find_are_neither_used_nor_waited_for() -> None:
    study = parse_study({**STUDY, "finetune": {}, "resources": {}})
    card = on_cluster(BIG)
    assert card.allot(study, 10, never) == Allotment(cpus=1, gpus=0)
    assert "torch finds none" in card.notices(study)[0]
    assert not card._on_gpus


@pytest.mark.parametrize(
    ("gpu_bytes", "asked", "cores"),
    [
        ((80 * GIB,), {"num_cpus": 1, "num_gpus": 1, "max_calls": 1}, 16),
        ((), {"num_cpus": 16}, 16),
    ],
)
def test_a_task_of_the_dense_model_leaves_nothing_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu_bytes: tuple[int, ...], asked: dict[str, int], cores: int
) -> None:
    calls: list[Any] = []

    class Task:
        def options(self, **options: Any) -> Task:
            calls.append(options)
            return self

        def remote(self, *arguments: Any) -> tuple[Any, ...]:
            return arguments

    def remote(**options: Any) -> Any:
        calls.append(options)
        return lambda function: Task()

    monkeypatch.setattr(executor.ray, "remote", remote)
    monkeypatch.setattr(executor, "result_of", lambda reference: reference)
    assert on_cluster(BIG, gpu_bytes).call("dense", len, "given") == (len, cores, "given")
    assert calls == [asked, {"name": "dense", "retry_exceptions": [DeviceError]}]


def test_gpus_that_an_autoscaler_may_add_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes_to_come", lambda: [dict(BIG)])
    study = parse_study({**STUDY, "finetune": {}, "resources": {}})
    assert on_cluster({"CPU": 4.0}).allot(study, 10, never).gpus == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "resources.gpus_per_trial=many",
            "resources.gpus_per_trial is 'many'; allowed: 'auto' or a number of at least 0",
        ),
        ("resources.gpus_per_trial=-1", "resources.gpus_per_trial is -1; allowed: 'auto' or a number of at least 0"),
        ("finetune.num_workers=0", "finetune.num_workers is 0; allowed: 'auto' or an integer of at least 1"),
        ("data.num_workers=-1", "data.num_workers is -1; allowed: 'auto' or an integer of at least 0"),
    ],
)
def test_what_is_allowed_is_said(change: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(STUDY, [change])
    assert words in str(caught.value)
