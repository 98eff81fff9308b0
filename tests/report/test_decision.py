"""The page for whoever decides: what to take, what it costs, how sure that is, and what would change it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report import synthetic
from report.reading import read_pdf, text_of
from report.with_images import study_with_images

from cleanai_ray.analysis.decision import weigh
from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.paired import PairedDifference
from cleanai_ray.report import make_report
from cleanai_ray.report.blocks import Paragraph
from cleanai_ray.report.pdf.style import MOST_TRIALS
from cleanai_ray.report.sections import write_document

N = 2000
DECIDES = np.arange(N) < N // 2


def right(deciding: int, test: int, shift: int = 0) -> np.ndarray:
    """So many images of each half are right; `shift` moves those of the second half by so many places."""
    place = np.arange(N) % (N // 2)
    return np.where(DECIDES, place < deciding, (place >= shift) & (place < test + shift))


DENSE = right(930, 930)


def study(first: np.ndarray, second: np.ndarray, **file: object) -> StudyFrames:
    trials = [{"method": "wanda", "macs": 50}, {"method": "taylor", "macs": 60}]
    trials = [{**one, "macs_dense": 100} for one in trials]
    return study_with_images(trials, [first, second], DENSE, DECIDES, study={"recommend": {"max_macs": 1.0}, **file})


def test_what_may_be_chance_comes_with_what_could_be_told_and_with_how_many_images() -> None:
    found = weigh(study(right(925, 930, 5), right(910, 929, 7)))  # wanda: 5 wrong, 5 right; taylor: 7 wrong, 6 right
    dense, runner_up, single, worst = found.sureness
    assert "On the 1000 test images, which decided nothing, it gets 5 wrong that the dense model gets right" in dense
    could = PairedDifference(5, 5, 1000).detectable
    assert f"No difference is seen. A difference from {could:.2f} points on would be found" in dense
    assert "the runner-up by the same rule, taylor (ratio 0.3, local)" in runner_up
    assert "Which of the two is more accurate cannot be told: a difference from" in runner_up
    assert "a single trial" in single
    assert worst == "No class lost accuracy."
    assert not any("More images" in text for text in found.changes)  # there is no difference to be told
    lost = weigh(study(right(925, 928, 4), right(910, 900)))  # 4 wrong, 2 right
    wanted = 1000 * (PairedDifference(4, 2, 1000).detectable / 0.2) ** 2
    (more,) = (text for text in lost.changes if text.startswith("More images"))
    assert f"0.20 points from the dense model takes about {round(wanted, -2):,.0f} images" in more


def test_the_best_of_each_budget_is_told_of_the_images_that_there_are(tmp_path: Path) -> None:
    trials = [{"method": "wanda"}, {"method": "taylor"}]
    note = note_on_cells(study_with_images(trials, [DENSE, DENSE], DENSE, DECIDES))
    assert "on the images that decide, and the best of any other method. Apart: yes where McNemar's" in note
    note = note_on_cells(study_with_images(trials, [DENSE, DENSE], DENSE, np.zeros(N, dtype=bool)))
    assert "on the scored images, none of which were set aside, and the best" in note
    assert "Apart: yes where McNemar's" in note
    note = note_on_cells(StudyFrames.load(synthetic.make().write(tmp_path)))  # whose tables have no single images
    assert "on the scored images, none of which were set aside, and the best" in note
    assert note.endswith("Apart: not known, since single images were not kept.")


def note_on_cells(frames: StudyFrames) -> str:
    document = write_document(frames, find(frames), {})
    texts = [block.text for part in document.chapters for block in part.blocks if isinstance(block, Paragraph)]
    (note,) = [text for text in texts if text.startswith("The best at every ratio or budget")]
    return note


def test_what_is_beyond_chance_is_said_to_be() -> None:
    found = weigh(study(right(925, 880), right(910, 800)))
    assert "50 wrong that the dense model gets right, and 0 right" in found.sureness[0]
    assert "That is more than chance explains." in found.sureness[0]
    assert "They differ beyond chance." in found.sureness[1]
    assert "Class 0 fell from 93.0 % to 88.0 % (50 of 1000 images)".lower() in found.sureness[-1].lower()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_macs": 1.0}, "A limit: the study states none"),
        ({"max_accuracy_loss": 60.0}, "allows a loss of 60 points"),
    ],
)
def test_the_limit_is_the_first_thing_that_would_change_the_answer(limits: dict, said: str) -> None:
    found = weigh(study(right(925, 880), right(910, 800), recommend=limits))
    assert said in found.changes[0]
    assert any(text.startswith("Next: taylor") for text in found.changes)
    assert any("fewer MACs need not be faster" in text for text in found.changes)


def test_tables_of_before_say_what_they_cannot_know(tmp_path: Path) -> None:
    found = weigh(StudyFrames.load(synthetic.make(seeds=(0, 1)).write(tmp_path)))
    assert "not known if the difference from the dense model is chance" in found.sureness[0]
    assert "2 trials that differ from it in seed or draw alone" in found.sureness[2]
    assert any(text.startswith("The device: the speed was measured at batch 1") for text in found.changes)


def test_the_summary_is_one_page_and_print_lists_few_trials(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("coverage", "wanda", "magnitude", "random"), seeds=(0, 1, 2, 3, 4))
    run = tables.write(tmp_path)
    make_report(run)
    pages = [page.extract_text() for page in read_pdf(run).pages]
    (summary,) = [page for page in pages if "What to take" in page and "Contents" not in page]
    for heading in ("What it costs", "How sure that is", "What would change the answer", "What the study found"):
        assert heading in summary
    text = text_of(read_pdf(run))
    listed = text[text.index("id ends in") : text.index("Best trial", text.index("id ends in"))]
    ids = {row["trial_id"][-8:] for row in tables.results}
    assert len(tables.results) == 140
    assert MOST_TRIALS <= sum(name in listed for name in ids) <= MOST_TRIALS + 1
    assert f"lists the first {MOST_TRIALS}" in " ".join(text.split())
    assert all(row["trial_id"] in run.read_text("report.html") for row in tables.results)
