r"""The second edition of the research study: gather finished runs, report on them together, and write its table.

python jobs/second_edition.py RUNS --data FOLDER_OF_THE_IDX_FILES

RUNS holds a folder NAME_seedS for each run, as `cleanai run` left it. Those that are whole are copied to
artifacts/research_second_edition/, with what the numbers are derived from and nothing else; report.pdf beside them is
made of all that are there, and the second edition's section of docs/research.md is written anew. Runs that are not
finished are named and left alone, so that the command can be given again whenever one more is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from cleanai_ray.analysis.joint.answers import JointRow
from cleanai_ray.analysis.joint.findings import JointFindings, sureness
from cleanai_ray.config.study import parse_study
from cleanai_ray.report.blocks import Table
from cleanai_ray.report.joint import make_joint_report, read_findings
from cleanai_ray.report.joint.tables import choices_table, effects_table, networks_table
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.schemas import OK

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = "artifacts/research_second_edition"
DOCUMENT = "docs/research.md"
BEGIN, END = "<!-- second edition -->", "<!-- end of second edition -->"

NAMES = tuple(f"{name}_seed{seed}" for name in ("resnet20", "vgg", "mobilenet_v2") for seed in range(3))
"""The runs of the whole study: three networks, three trainings of each."""

TABLES = ("results.parquet", "layers.parquet", "images.parquet", "correct.parquet")
RECORDED = (
    *("version", "commit", "command", "python", "platform", "packages", "hardware", "digests", "samples"),
    *("seconds", "started", "warnings"),
)
"""What is kept of environment.json."""


def gather(runs: Path, home: Path, data: Path | None) -> list[str]:
    """Copy the runs that are whole, and return a line for each that is not.

    Args:
        runs: The folder of run directories.
        home: The folder that they are copied to.
        data: The folder of the data set's files, whose digests are recorded; None where they are not at hand.
    """
    lines = []
    for name in NAMES:
        found = next((each for each in (runs / name, runs / f"research_second_edition_{name}") if each.is_dir()), None)
        missing = f"{name}: not begun" if found is None else lacks(found)
        if missing:
            lines.append(missing)
        elif found is not None:
            copy_run(found, home / name, data)
    return lines


def lacks(run: Path) -> str:
    """Say what a run lacks; empty where it is whole."""
    absent = [name for name in (*TABLES, "study.yaml", "environment.json") if not (run / name).exists()]
    if absent:
        return f"{run.name}: no {absent[0]} yet"
    rows = pq.read_table(run / "results.parquet", columns=["trial_id", "status"]).to_pylist()
    wanted = len(parse_study(yaml.safe_load((run / "study.yaml").read_text())).trials())
    good = sum(row["status"] == OK for row in rows)
    return "" if good == wanted else f"{run.name}: {good} of {wanted} trials and controls have succeeded"


def copy_run(run: Path, place: Path, data: Path | None) -> None:
    """Copy what the numbers are derived from, without any path of the machine."""
    place.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        pq.write_table(pq.read_table(run / name), place / name, compression="zstd", compression_level=19)
    study = yaml.safe_load((run / "study.yaml").read_text())
    study["output"]["dir"] = f"{HOME}/{place.name}"
    (place / "study.yaml").write_text(without_paths(yaml.safe_dump(study, sort_keys=False)))
    record = json.loads((run / "environment.json").read_text())
    kept: dict[str, Any] = {name: record[name] for name in RECORDED if name in record}
    earlier = [one.get("commit") for one in record.get("earlier_runs", ()) if isinstance(one, dict)]
    kept["commits"] = [commit for commit in dict.fromkeys([*earlier, record.get("commit")]) if commit]
    if data is not None:
        kept["data"] = {file.name: digest(file) for file in sorted(data.iterdir()) if file.is_file()}
    (place / "environment.json").write_text(without_paths(json.dumps(kept, indent=2, sort_keys=True)) + "\n")


def digest(file: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def without_paths(text: str) -> str:
    """Return a text in which each absolute path is its last part alone."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+([\w.+-]+)", r"\1", text)


def folders(home: Path) -> list[Path]:
    """Return the runs that were gathered, in the order of `NAMES`."""
    return [home / name for name in NAMES if (home / name / "results.parquet").exists()]


def markdown(findings: JointFindings | None, num_runs: int) -> str:
    """Return what the documentation says of the runs that are in.

    Args:
        findings: What they say together; None while there are fewer than two.
        num_runs: Their number.
    """
    if findings is None:
        return f"Runs that are in: {num_runs} of {len(NAMES)}. It takes two for a joint report.\n"
    parts = [f"Runs that are in: {findings.body}.", findings.headline]
    if findings.primary is not None and findings.primary.rows:
        parts += [
            f"**{findings.primary.question}** Declared before the runs; points of top-1.",
            _effects(findings.primary.rows),
            "The same effects, network by network:",
            _table(networks_table(findings.primary.rows, findings.joint.networks)),
        ]
    if findings.choices:
        parts += [
            "What to take, told on the test images that decided nothing, though of the same trainings and draws:",
            _table(choices_table(findings.choices)),
        ]
    if told := sureness(findings):
        parts += ["How sure that is, and what would change it:", "\n".join(f"- {sentence}" for sentence in told)]
    if findings.controls:
        parts += ["Pruned models minus controls, on the same images:", _effects(findings.controls)]
    return "\n\n".join(parts) + "\n"


def _effects(rows: Iterable[JointRow]) -> str:
    return _table(effects_table(tuple(rows), "compared"))


def _table(table: Table) -> str:
    titles = [column.title for column in table.columns]
    lines = [titles, ["---"] * len(titles), *table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def in_document(text: str, section: str) -> str:
    """Return a document with a section between the markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n{END}{rest.split(END)[1]}"


def report(home: Path, document: Path) -> int:
    """Write the joint report of the gathered runs, and the section of the document; return the number of runs."""
    places = folders(home)
    runs = [RunDirectory(place) for place in places]
    findings = None
    if len(runs) > 1:
        findings = read_findings(runs, len(NAMES))
        make_joint_report(runs, RunDirectory(home), len(NAMES))
        (home / "report.html").unlink()  # what the PDF says, three times as large
    document.write_text(
        in_document(document.read_text(encoding="utf-8"), markdown(findings, len(runs))), encoding="utf-8"
    )
    return len(runs)


def run(arguments: list[str]) -> int:
    """Gather, report, and print what is not in yet."""
    parser = argparse.ArgumentParser(description="Gather the second edition's runs, and report on them together.")
    parser.add_argument("runs", type=Path, help="folder with a run directory NAME_seedS for each run")
    parser.add_argument("--data", type=Path, help="folder with the data set's files, whose digests are recorded")
    options = parser.parse_args(arguments)
    home = REPOSITORY / HOME
    for line in gather(options.runs, home, options.data):
        print(line)
    count = report(home, REPOSITORY / DOCUMENT)
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) if home.exists() else 0
    print(f"{count} of {len(NAMES)} runs are in {HOME}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
