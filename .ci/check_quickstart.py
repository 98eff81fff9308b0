"""Check the run directory that `make quickstart` leaves: every promised file is there, and says what it should.

Usage: python .ci/check_quickstart.py RUN_DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pypdf import PdfReader
from safetensors import safe_open

from cleanai_ray.config.study import load_study
from cleanai_ray.storage import schemas


def check_tables(run: Path) -> list[dict[str, object]]:
    """Check columns and rows of the Parquet files against the study, and return the rows of results.parquet."""
    study = load_study(run / "study.yaml")
    metrics = [*study.sweep.coverage_metrics]
    expected_schemas: dict[str, pa.Schema] = {
        schemas.RESULTS_FILE: schemas.RESULTS,
        schemas.LAYERS_FILE: schemas.LAYERS,
        schemas.COVERAGE_FILE: schemas.coverage_schema(metrics),
        schemas.HISTORY_FILE: schemas.HISTORY,
    }
    tables = {}
    for name, schema in expected_schemas.items():
        tables[name] = pq.read_table(run / name)
        missing = [column for column in schema.names if column not in tables[name].schema.names]
        assert not missing, f"{name} lacks {', '.join(missing)}"
    rows = tables[schemas.RESULTS_FILE].to_pylist()
    expected = {trial.trial_id for trial in study.trials()}
    assert {row["trial_id"] for row in rows} == expected, "results.parquet does not hold one row a trial"
    assert len(rows) == len(expected)
    for row in rows:
        assert row["status"] == schemas.OK, f"trial {row['trial_id']} failed: {row['error']}"
        assert 0.0 <= row["accuracy"] <= 1.0, row
        assert 0 < row["params"] < row["params_dense"], row
        assert 0 < row["macs"] < row["macs_dense"], row
        assert row["accuracy_dense"] > 0.8, f"the dense model learned little: {row['accuracy_dense']}"
    assert {row["trial_id"] for row in tables[schemas.LAYERS_FILE].to_pylist()} == expected
    assert tables[schemas.COVERAGE_FILE].num_rows > 0
    return rows


def check_models(run: Path, rows: list[dict[str, object]]) -> None:
    """Check that every saved model has a plan and weights that can be read."""
    folders = [folder for folder in sorted((run / "models").iterdir()) if folder.is_dir()]
    known = {row["trial_id"] for row in rows}
    saved = [folder for folder in folders if folder.name in known]
    assert saved, "no pruned model was saved"
    for folder in saved:
        assert json.loads((folder / "plan.json").read_text()), folder
        with safe_open(folder / "weights.safetensors", framework="numpy") as weights:
            assert list(weights.keys()), folder


def check_reports(run: Path) -> None:
    """Check that charts are SVG, that the PDF has pages with text, and that the HTML is whole."""
    charts = sorted((run / "charts").glob("*.svg"))
    assert charts, "no chart was drawn"
    for chart in charts:
        root = ElementTree.parse(chart).getroot()
        assert root.tag.endswith("svg"), chart
        assert len(list(root.iter())) > 10, f"{chart} is empty"
    pages = PdfReader(run / "report.pdf").pages
    assert len(pages) >= 2, f"report.pdf has {len(pages)} pages"
    assert len(pages[0].extract_text().split()) > 5, "the first page of report.pdf has no text"
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.rstrip().endswith("</html>"), "report.html is cut off"


def main(folder: str) -> None:
    """Check one run directory; an AssertionError says what is wrong."""
    run = Path(folder)
    assert yaml.safe_load((run / "study.yaml").read_text())["name"]
    assert json.loads((run / "environment.json").read_text())
    rows = check_tables(run)
    check_models(run, rows)
    check_reports(run)
    sys.stdout.write(f"{run}: {len(rows)} trials, all files present and readable\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
