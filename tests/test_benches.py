"""What the benches compute from what they measure."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from torchvision.models import VisionTransformer

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "jobs"))
import bench_accuracy
import bench_calibration
import bench_gpu
import bench_scale
import bench_startup
import deit_weights
import invented_tables


def test_a_ratio_is_that_of_the_two_in_the_middle_to_the_two_around_them() -> None:
    assert bench_calibration.ratio([1.0, 3.0, 5.0, 3.0]) == 2.0


def test_the_names_of_deit_are_those_of_torchvision() -> None:
    published = ["cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    published += [f"patch_embed.proj.{kind}" for kind in ("weight", "bias")]
    parts = ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    published += [f"blocks.{n}.{part}.{kind}" for n in range(11) for part in parts for kind in ("weight", "bias")]
    model = VisionTransformer(image_size=32, patch_size=16, num_layers=11, num_heads=2, hidden_dim=8, mlp_dim=16)
    renamed = deit_weights.renamed({name: torch.zeros(1) for name in published})
    assert set(renamed) == set(model.state_dict())


def test_means_over_seeds_have_students_interval() -> None:
    # Of 0.90, 0.92 and 0.94 the deviation is 0.02, and t(0.975) with two degrees of freedom is 4.303.
    assert bench_accuracy.mean_interval([0.90, 0.94, 0.92]) == "92.00% ± 4.97"
    assert bench_accuracy.mean_interval([0.9]) == "90.00%"


def test_rows_of_seeds_become_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, auto = {0: 0.92, 1: 0.94}, {0: 0.90, 1: 0.93}

    def measured(options: object, seed: int) -> list[bench_accuracy.Row]:
        whole = bench_accuracy.Row(budget=1.0, label=bench_accuracy.DENSE, mode="", scores={"raw": dense[seed]})
        scores = {"raw": 0.5, "auto": auto[seed]}
        return [whole, bench_accuracy.Row(budget=0.5, label="wanda", mode="global", scores=scores)]

    monkeypatch.setattr(bench_accuracy, "measured", measured)
    monkeypatch.setattr(bench_accuracy, "open_network", lambda file, seed, options: seed)
    first, second = bench_accuracy.over_seeds(
        argparse.Namespace(seeds=[0, 1], repairs=["sequential", "auto"]), "study.yaml"
    )
    columns = ["raw", "sequential", "auto"]
    # Half of the difference of two values, times t(0.975) with one degree of freedom, 12.706: 0.01 x 12.706.
    assert first == ["1.0", "dense", "", "93.00% ± 12.71", "", "", ""]
    assert second[:4] == ["0.5", "wanda", "global", "50.00% ± 0.00"]
    assert second[3 + columns.index("auto")] == "91.50% ± 19.06"
    # The losses are 2 points and 1 point.
    assert second[-1] == "auto: -1.50 points to dense"


def test_a_spread_names_median_and_quartiles() -> None:
    # Of 1 to 5 the quartiles are 2, 3 and 4.
    assert bench_calibration.spread([5, 1, 4, 2, 3], " s") == "3.00 s (2.00 to 4.00)"
    assert bench_calibration.spread([1.5]) == "1.50"


def test_start_up_tells_seconds_and_modules_of_a_process() -> None:
    name, seconds, computed, importing, modules = bench_startup.measure("--version", ["--version"], repeats=1)
    assert name == "--version"
    assert all(float(value) > 0 for value in (seconds, computed, importing))
    assert int(modules) > 100
    with pytest.raises(RuntimeError, match=r"cleanai frobnicate ended with 2: .*frobnicate"):
        bench_startup.timed(bench_startup._WATCHED, ["frobnicate"], 1)


@pytest.mark.parametrize(("available", "count"), [(4, 4), (2, 2), (0, 1), (100, 64)])
def test_processes_are_as_many_as_fit(available: int, count: int) -> None:
    each = 2**28
    assert bench_scale.affordable(64, bench_scale.SPARE_BYTES + available * each, each) == count


def test_invented_tables_fill_every_column_and_no_trial_twice(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert invented_tables.write_run(run, 200)["results"] == 200
    frames = StudyFrames.load(run)
    assert frames.results["trial_id"].n_unique() == 200
    empty = {name for name in frames.results.columns if frames.results[name].null_count() == 200}
    scores = {"score", "score_validation", "score_test"}
    assert empty == {"error", "requested_budget", "control"} | scores | {f"{name}_dense" for name in scores}
    assert set(frames.results.columns) == set(schemas.RESULTS.names)
    assert frames.results["accuracy"].is_between(0, 1).all()


def test_a_chart_draws_some_trials_whole_and_always_the_same() -> None:
    rows = pl.DataFrame({"trial_id": [f"t{index // 3}" for index in range(300)], "epoch": [0, 1, 2] * 100})
    drawn = style.thinned(rows, 10)
    assert drawn["trial_id"].n_unique() == 10
    assert len(drawn) == 30
    assert set(style.thinned(rows.reverse(), 10)["trial_id"]) == set(drawn["trial_id"])
    assert style.thinned(rows, 100).equals(rows)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (bench_gpu.Check("a", 1.1, most=1.15), "ok"),
        (bench_gpu.Check("a", 1.2, most=1.15), "SLOW"),
        (bench_gpu.Check("a", 0.95, least=0.9), "ok"),
        (bench_gpu.Check("a", 0.5, least=0.9), "SLOW"),
        (bench_gpu.Check("a", 0.5), "-"),
        (bench_gpu.Check("a", None, most=1), "-"),
    ],
)
def test_a_check_keeps_to_its_floor_or_is_slow(check: bench_gpu.Check, verdict: str) -> None:
    assert check.verdict() == verdict
    words = check.line("part").split()
    assert words[:3] == [verdict, "part", "a"]


def test_a_ratio_is_of_the_two_in_the_middle_to_the_two_around_them_after_one_untimed_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = bench_gpu.Setting(device=torch.device("cpu"), small=True, executor="local")
    times = iter([1.0, 3.0, 5.0, 3.0])
    monkeypatch.setattr(bench_gpu.Setting, "seconds", lambda self, work: next(times))
    done: list[str] = []
    assert setting.ratio(lambda: done.append("work"), lambda: done.append("bare"), rounds=1) == 2.0
    assert done == ["work", "bare"]


def test_every_section_of_the_bench_of_gpus_runs_at_toy_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--small", "--executor", "local", "--sections", *bench_gpu.SECTIONS]
    code = bench_gpu.main(words)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "sections that failed: none" in said
    lines = [line.split() for line in said.splitlines()]
    assert {words[1] for words in lines if words[0] in ("ok", "SLOW", "-")} == set(bench_gpu.SECTIONS)


def test_a_section_that_raises_fails_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(setting: bench_gpu.Setting) -> Iterator[bench_gpu.Check]:
        yield bench_gpu.Check("first", 1.0)
        raise OverflowError("no\nmore")

    monkeypatch.setitem(bench_gpu.SECTIONS, "repair", raising)
    monkeypatch.setitem(bench_gpu.SECTIONS, "study", lambda setting: iter([bench_gpu.Check("second", 2.0)]))
    assert bench_gpu.main(["--device", "cpu", "--small", "--sections", "repair", "study"]) == 1
    _, first, failure, second, end = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["-", "repair", "first"]
    assert failure.split() == ["FAIL", "repair", "OverflowError:", "no", "more"]
    assert second.split()[:3] == ["-", "study", "second"]
    assert end.endswith("sections that failed: repair")
    assert bench_gpu.main(["--device", "cpu", "--sections", "study", "--seconds", "-1"]) == 0
    assert "left out" in capsys.readouterr().out


def test_without_a_gpu_the_bench_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "finds no GPU" in line
    assert "--device cpu --small" in line


def test_the_pace_of_a_stage_begins_with_its_first_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    times, clock = bench_gpu.studies.StageTimes(), iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(bench_gpu.studies, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    with times.shards("calibration", 3) as on_shard:
        for done, samples in enumerate((64, 64, 32), start=1):
            on_shard(done, 3, samples)
    assert times.images_per_second("calibration") == (64 + 32) / 4
