from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from cleanai_ray.charts.latency_profile import draw, panels
from cleanai_ray.charts.style import to_svg
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.executors import latency_profile
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions
from cleanai_ray.stages import latency_profile as stage
from cleanai_ray.stages.fingerprints import profile_key
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from tests.small_nets import Plain
from tests.small_study import SMALL


def net(num_classes: int) -> Plain:
    """A network of two groups, of 6 and 8 channels, for images of one channel."""
    import torch

    found = Plain()
    found.conv1 = torch.nn.Conv2d(1, 6, 3, padding=1)
    found.fc = torch.nn.Linear(8, num_classes)
    return found


def study(**evaluation: Any) -> Any:
    model = {"factory": f"{__name__}:net", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}}
    timing = {"samples": 100, "latency": {"warmup": 1, "runs": 5}, "target": {"backend": "torch"}, **evaluation}
    return parse_study({**SMALL, "model": model, "pruning": {"round_to": 2}, "evaluation": timing})


def analysed(given: Any, folder: Path) -> pl.DataFrame:
    progress = ProgressReporter(Console(file=io.StringIO(), width=200))
    run = RunDirectory(str(folder))
    return latency_profile.analyse(given, check_study(given), run, RunOptions(executor="local"), progress)


def test_a_study_s_profile_is_written_drawn_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, run = study(), RunDirectory(str(tmp_path))
    table = analysed(given, tmp_path)
    assert table.columns == schemas.PROFILE.names
    alone = table.filter(pl.col("kind") == "group")
    assert sorted(alone.select("group", "width").rows()) == [
        *(("conv1", width) for width in (2, 4)),
        *(("conv2", width) for width in (2, 4, 6)),
    ]
    assert (tmp_path / latency_profile.CHART_FILE).read_text().startswith("<svg")
    monkeypatch.setattr(latency_profile, "profile_study", None)  # it must not be asked for again
    assert analysed(given, tmp_path).equals(table)
    headings, rows, lines = latency_profile.describe(table, run)
    assert [len(row) for row in rows] == [len(headings)] * 2
    assert (
        sum(line.startswith("check: ") for line in lines) == table.filter(pl.col("kind") == "check")["model"].n_unique()
    )
    profile = stage.profile_of(check_study(given), table)
    assert profile.predict({}) == pytest.approx(table["milliseconds_dense"][0])


def test_the_noise_of_one_timing_is_told_where_it_is_known() -> None:
    """Twice the dense model, 2 % apart: ln 1.02 / sqrt 2 = 1.4 %. A table of an earlier version has no repeats."""
    table = pl.DataFrame({"kind": ["group", "repeat", "repeat"], "ratio": [0.5, 1.02, 1 / 1.02]})
    assert latency_profile._noise(table) == ["noise of one timing: 1.4%, taken out of what groups save."]
    assert latency_profile._noise(table.head(1)) == []


def test_the_miss_of_each_prediction_is_told_with_whether_it_is_within_five_percent() -> None:
    checks = [("group", 0, 9.0, 5.0), ("check", 1, 10.0, 10.4), ("check", 1, 10.0, 10.4), ("check", 2, 6.11, 4.51)]
    columns = ["kind", "model", "milliseconds", "predicted_milliseconds"]
    lines = latency_profile._verdicts(pl.DataFrame(checks, schema=columns, orient="row"))
    assert [line.partition("predicted ")[2] for line in lines] == [
        "10.400 ms, measured 10.000 ms: +4.0%, within 5%",
        "4.510 ms, measured 6.110 ms: -26.2%, outside 5%",
    ]


def test_a_study_without_a_target_is_told_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"evaluation\.target is null; needed: .*--set evaluation\.target\.backend="):
        analysed(study(target=None), tmp_path)


def test_a_profile_is_of_one_target_and_architecture_and_of_any_weights() -> None:
    key = profile_key(study())
    assert profile_key(study(target={"backend": "torch", "batch_size": 2})) != key
    assert profile_key(study(latency={"warmup": 1, "runs": 6})) != key
    assert profile_key(study(samples=50)) == key
    trained = study()
    other = trained.model_copy(
        update={"model": trained.model.model_copy(update={"train": None, "weights": "other.safetensors"})}
    )
    assert profile_key(other) == key


def rows(*timed: tuple[str, int, float, float]) -> pl.DataFrame:
    fixed = {"kind": "group", "num_channels": 16, "multiple": 8, "milliseconds_dense": 2.0, "target": "t"}
    return pl.DataFrame(
        pl.from_arrow(
            schemas.to_table(
                [
                    {**fixed, "group": name, "group_index": len(name), "width": width}
                    | {"milliseconds": measured, "fitted_milliseconds": fitted, "model": number}
                    for number, (name, width, measured, fitted) in enumerate(timed)
                ],
                schemas.PROFILE,
            )
        )
    )


def test_a_panel_has_the_dense_width_at_the_end_of_its_stairs() -> None:
    cells = panels(rows(("a", 8, 1.4, 1.5), ("bb", 8, 2.1, 2.0)))
    assert cells.drop("target").rows() == [
        ("1 a", 8, 1.5, 1.4),
        ("1 a", 16, 2.0, 2.0),
        ("2 bb", 8, 2.0, 2.1),
        ("2 bb", 16, 2.0, 2.0),
    ]
    assert "<svg" in to_svg(draw(rows(("a", 8, 1.4, 1.5))))
    assert draw(rows()) is None
