"""The trials as a page gets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report import synthetic

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.report import make_report
from cleanai_ray.report.blocks import TrialTable
from cleanai_ray.report.sections.trial_table import MAX_TRIALS, trial_table


def column(table: TrialTable, title: str) -> list:
    titles = [entry.title for entry in table.columns]
    return [row[titles.index(title)] for row in table.rows]


def load(tables: synthetic.Tables, folder: Path) -> StudyFrames:
    return StudyFrames.load(tables.write(folder))


def test_the_page_has_every_trial_and_print_the_best(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("coverage", "wanda"), seeds=tuple(range(20)))
    assert len(tables.results) == 400
    table = trial_table(load(tables, tmp_path))
    ranked = sorted(tables.results, key=lambda row: (-row["accuracy"], row["macs"], row["trial_id"]))
    assert column(table, "trial") == [row["trial_id"] for row in ranked]
    assert len(table.printed.rows) == MAX_TRIALS == 300
    assert table.highlighted == 0


def test_values_are_those_of_the_trial(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",))
    row = tables.results[0]
    row |= {
        "speedup_b1": 1.5,
        "speedup_b1_low": 1.25,
        "speedup_b1_high": 1.75,
        "mcnemar_p": 0.0123,
        "lost": 9,
        "gained": 4,
    }
    table = trial_table(load(tables, tmp_path))
    assert column(table, "top-1, %") == [pytest.approx(100 * row["accuracy"])]
    assert column(table, "MACs, %") == [pytest.approx(100 * row["macs"] / row["macs_dense"], abs=1e-3)]
    assert column(table, "vs dense") == [pytest.approx(100 * (row["accuracy"] - row["accuracy_dense"]), abs=1e-4)]
    assert column(table, "speed-up interval") == [(1.25, 1.75)]
    assert column(table, "p") == [0.0123]
    printed = dict(zip((entry.title for entry in table.printed.columns), table.printed.rows[0], strict=True))
    assert printed["speed-up"] == "1.50\N{MULTIPLICATION SIGN} (1.25\N{EN DASH}1.75)"
    assert printed["vs dense"].endswith("*")


def test_columns_without_a_value_are_left_out(tmp_path: Path) -> None:
    titles = [
        entry.title for entry in trial_table(load(synthetic.make(methods=("wanda",), timed=False), tmp_path)).columns
    ]
    assert {"speed-up", "speed-up interval", "ms", "fine-tuned, %", "p", "error"}.isdisjoint(titles)
    assert "repaired, %" in titles


def test_trials_that_failed_come_last_with_their_error(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",))
    first = tables.results[0]["trial_id"]
    table = trial_table(load(synthetic.fail(tables, {first}), tmp_path))
    assert column(table, "trial")[-1] == first
    assert column(table, "top-1, %")[-1] is None
    assert column(table, "error") == [None, None, None, f"CUDA out of memory in {first}"]


def test_the_json_in_the_page_cannot_end_its_element(tmp_path: Path) -> None:
    tables = synthetic.fail(synthetic.make(methods=("wanda",)), error="</script><!--<script>")
    run = tables.write(tmp_path)
    make_report(run)
    found = re.search(
        r'<script type="application/json" id="trials">(.*?)</script>', run.read_text("report.html"), re.DOTALL
    )
    assert found is not None
    assert "<" not in found[1]
    rows = json.loads(found[1])["rows"]
    assert sorted(row[-1] for row in rows) == sorted(row["error"] for row in tables.results)
