"""The joint report of several runs: every number of its PDF derived anew from the Parquet files, and its words."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pypdfium2
import pytest
import yaml
from report.joint_expected import Expected
from report.joint_runs import Planted, write_runs

import cleanai_ray as cleanai
from cleanai_ray.analysis.joint.answers import JointAnswer, JointRow
from cleanai_ray.analysis.joint.evidence import compare_sides
from cleanai_ray.analysis.joint.findings import JointFindings
from cleanai_ray.analysis.joint.pairs import DENSE
from cleanai_ray.analysis.joint.study import Row
from cleanai_ray.cli import main
from cleanai_ray.errors import ArtifactError
from cleanai_ray.report.blocks import Paragraph
from cleanai_ray.report.joint.document import write_joint_document
from cleanai_ray.storage.image_schemas import CORRECT_FILE

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "artifacts" / "research_second_edition"
NUMBER = re.compile(r"\d+\.\d{2,}")
SKILL = {"coverage": -0.5, "random": -0.8, "reconstruction": 0.2}


def committed() -> list[Path]:
    return sorted(path.parent for path in COMMITTED.glob("*/results.parquet"))


def text_of(pdf: Path) -> str:
    document = pypdfium2.PdfDocument(pdf)
    pages = [page.get_textpage().get_text_range() for page in document]
    document.close()
    return " ".join(" ".join(pages).split())


def assert_every_number_is_derived(folders: Sequence[Path], pdf: Path, num_planned: int) -> None:
    """Every row and sentence is there, and no number with decimals is there that is not of one of them."""
    text, expected = text_of(pdf), Expected(folders)
    rows, sentences = expected.rows(), expected.sentences()
    assert [row for row in rows if row not in text] == []
    assert [sentence for sentence in sentences if sentence not in text] == []
    everything = [*rows, *sentences, *expected.chart(), *expected.seconds()]
    assert Counter(NUMBER.findall(text)) == Counter(number for part in everything for number in NUMBER.findall(part))
    assert f"{len(folders)} of {num_planned}" in text
    for run in expected.slow.runs:
        trials = [row for row in run.rows if row["control"] is None]
        failed = sum(row["status"] != "ok" for row in trials)
        row = f"{run.network} {run.training} {len(trials)} {failed} {len(run.rows) - len(trials)} "
        assert f"{row}{100 * run.dense.mean():.2f} %" in text
    assert f"of {len(expected.slow.tests)} decided nothing" in text
    assert f" {int(expected.slow.tests.sum())} " in text
    assert "all numbers are of the others, though of the same trainings and draws." in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine runs: three networks, three trainings of each."""
    planted = Planted(SKILL, network=0.1, training=0.1, draw=0.05)
    return write_runs(tmp_path_factory.mktemp("whole"), planted)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs of nine: three trainings of one network, and one of another."""
    planted = Planted(SKILL, training=0.2, num_images=200, seed=1)
    return write_runs(tmp_path_factory.mktemp("some"), planted, networks=("resnet20", "vgg_small"), trainings=(3, 1))


@pytest.mark.parametrize("runs", [pytest.param("whole", marks=pytest.mark.slow), "some"])
def test_every_number_comes_from_the_tables(runs: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folders = request.getfixturevalue(runs)
    assert main(["report", *map(str, folders), "--out", str(tmp_path), "--planned", "9"]) == 0
    assert_every_number_is_derived(folders, tmp_path / "report.pdf", 9)
    text = text_of(tmp_path / "report.pdf")
    assert ("This is not the whole study: 4 of 9 runs are in." in text) == (runs == "some")


@pytest.mark.slow
@pytest.mark.skipif(len(committed()) < 2, reason="fewer than two runs of the second edition are committed")
def test_every_number_of_the_committed_report_comes_from_the_committed_tables() -> None:
    names = {path.name: path for path in committed()}
    order = [f"{name}_seed{seed}" for name in ("resnet20", "vgg", "mobilenet_v2") for seed in range(3)]
    folders = [names.pop(name) for name in order if name in names]
    assert names == {}, "a folder that is no run of the study"
    assert_every_number_is_derived(folders, COMMITTED / "report.pdf", len(order))


@pytest.mark.skipif(len(committed()) < 2, reason="fewer than two runs of the second edition are committed")
def test_other_halves_of_the_test_images_leave_the_recommendation_within_its_interval() -> None:
    assert_halves_agree(committed())


def test_halves_of_the_test_images_agree_where_the_truth_is_planted(whole: list[Path]) -> None:
    assert_halves_agree(whole)


def assert_halves_agree(folders: Sequence[Path]) -> None:
    """The difference from dense on half of the test images, drawn anew, is within its interval 95 times in 100."""
    findings = cleanai.analyse(folders).findings
    joint, random = findings.joint, np.random.default_rng(0)
    tests = np.flatnonzero(joint.test_images)
    halves = [random.permutation(tests)[: len(tests) // 2] for _ in range(400)]
    for choice in findings.choices:
        by_network: dict[str, list[np.ndarray]] = {}
        for run, rows in zip(joint.runs, joint.trials, strict=True):
            own = [
                r for r in rows if (r["label"], r["mode"], r["steps"]) == choice.key and r["amount"] == choice.amount
            ]
            bits = [100.0 * (run.hits[row["trial_id"]].astype(float) - run.dense_hits) for row in own]
            by_network.setdefault(run.network, []).append(np.mean(bits, axis=0))
        mean = np.mean([np.mean(images, axis=0) for images in by_network.values()], axis=0)
        assert mean[tests].mean() == pytest.approx(choice.against_dense.effect)
        interval = choice.against_dense.interval(choice.against_dense.narrowest or "these networks")
        if interval is None:
            pytest.skip("too few trainings are in for an interval")
        inside = [interval[0] <= mean[half].mean() <= interval[1] for half in halves]
        assert np.mean(inside) >= 0.95


def written_of(findings: JointFindings) -> str:
    chapters = write_joint_document(findings, None).chapters
    return " ".join(block.text for chapter in chapters for block in chapter.blocks if isinstance(block, Paragraph))


def test_trials_without_single_images_are_told_apart_from_those_that_failed(tmp_path: Path) -> None:
    folders = write_runs(tmp_path, Planted(SKILL, num_images=60), networks=("resnet20",), controls=())
    whole = cleanai.analyse(folders).findings
    assert "left out" not in written_of(whole)
    # The images of one trial of coverage are lost; on all of them its accuracy is still known, on half it is not.
    file = folders[0] / CORRECT_FILE
    kept = pq.read_table(file)
    pq.write_table(kept.filter(pc.not_equal(kept["trial_id"], "coverage-macs0.5-d0-p0")), file)
    joint = cleanai.analyse(folders).findings.joint

    def lost(row: Row) -> bool:
        return bool(row["method"] == "coverage")

    found = compare_sides(joint, joint.amounts[1], lost, DENSE, images=joint.test_images)
    assert found is not None
    assert (found.num_unknown, found.num_dropped, found.few_draws) == (1, 0, 2)
    answer = JointAnswer("b1", "?", rows=(JointRow(joint.amounts[1], "coverage", found),), is_primary=True)
    text = written_of(dataclasses.replace(whole, answers=(answer,), differences=answer.rows, controls=answer.rows))
    left = "1 draw of single runs left out because the single images of a trial are not known."
    assert text.count(left) == 3
    assert "cannot tell. Draws of calibration images that all runs have: 2; it takes three." in text
    # Of all trials of a network: nothing can be chosen, though nothing failed.
    pq.write_table(kept.slice(0, 0), file)
    for other in folders[1:]:
        pq.write_table(kept.slice(0, 0), other / CORRECT_FILE)
    unknown = cleanai.analyse(folders).findings
    assert unknown.choices == ()
    text = written_of(unknown)
    assert "single images of its trials are not known" in text
    assert "without a failed trial." not in text


def test_an_analysis_takes_several_runs(whole: list[Path]) -> None:
    found = cleanai.analyse([str(folder) for folder in whole[:3]], planned=9)
    assert repr(found) == "JointAnalysis(3 of 9 planned runs: resnet20 (3 trainings))"
    answers = {answer.key: answer for answer in found.answers}
    assert answers["b1"].is_primary
    assert [row.amount.rpartition(" ")[0][-2:] for row in answers["b1"].rows] == ["70", "50", "30"]
    assert {row.found.like_these for row in answers["b1"].rows} == {None}  # one network says nothing of others
    assert found.summary().heading.startswith("Is coverage better than magnitude?")
    chart = found.chart()
    assert chart is not None
    assert "Differences from magnitude" in str(chart.to_dict()["title"])


def test_what_cannot_be_joined_is_refused_in_a_sentence(whole: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    with pytest.raises(ArtifactError, match="resnet20, training 0: two run directories hold it"):
        cleanai.analyse([whole[0], copy])
    with pytest.raises(ArtifactError, match="number of run directories is 1; needed for a joint report: 2"):
        cleanai.analyse([whole[0]])
    text = (copy / "study.yaml").read_text().replace("name: fashion_mnist", "name: digits")
    (copy / "study.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"data\.name is fashion_mnist and digits; allowed in a joint report: one"):
        cleanai.analyse([whole[0], copy])


def test_trainings_that_began_from_other_weights_are_told_apart(whole: list[Path], tmp_path: Path) -> None:
    """The same seed twice, from weights of two files: the digests of what was trained differ."""
    runs = []
    for name, run in zip("ab", whole, strict=False):
        shutil.copytree(run, tmp_path / name)
        file = tmp_path / name / "study.yaml"
        study = yaml.safe_load(file.read_text())
        study["model"] |= {"weights": f"{name}.pth", "train": {"epochs": 12, "seed": 0}}
        file.write_text(yaml.safe_dump(study))
        runs.append(tmp_path / name)
    joint = cleanai.analyse(runs).findings.joint
    assert [run.name for run in joint.runs] == ["resnet20, training resnet200", "resnet20, training resnet201"]


def test_a_joint_report_needs_a_folder(whole: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(whole[0]), str(whole[1])]) == 2
    assert "--out is missing; needed for a joint report of 2 run directories: a folder" in capsys.readouterr().err
