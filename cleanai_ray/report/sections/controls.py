"""The chapter on controls: what else could be had for the same cost or the same training."""

from __future__ import annotations

from cleanai_ray.analysis.chosen import has_test_images
from cleanai_ray.analysis.controls import BesideControl, beside_controls
from cleanai_ray.analysis.numbers import NONE, percent, plural, signed
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Callout, Chapter, Column, Paragraph, Table
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_COLUMNS = (
    Column("control", 0.2),
    Column("asked for", 0.1),
    Column("seed", 0.06, True),
    Column("MACs", 0.07, True),
    Column("top-1", 0.09, True),
    Column("pruned model beside it", 0.26),
    Column("pruned minus control", 0.22, True),
)
_MEANING = (
    "From scratch: the same architecture with random weights, trained as the dense model was, for as long as the dense "
    "training and the fine-tuning took together. Narrow network: likewise, with all layers narrowed alike. Dense, "
    "fine-tuned: the dense model after the fine-tuning that trials get. torch-pruning: its own magnitude pruner with "
    "batch norm recalibrated on calibration images, and the trials' fine-tuning. No control is ever recommended."
)


@CHAPTERS.register("controls")
class Controls(ChapterWriter):
    """Controls beside the best pruned models of the same budgets."""

    position = 33
    charts = ("controls",)

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where the study has no control with a result."""
        found = beside_controls(content.study)
        failed = len(content.study.control_results) - len(found)
        if not found and not failed:
            return None
        if not found:
            told = [
                Paragraph(f"{row['trial_id']}: {row['error'] or 'no result'}")
                for row in content.study.control_results.iter_rows(named=True)
            ]
            return Chapter("Does pruning pay?", (Paragraph("That is not known: every control failed."), *told))
        images = "the images that decided nothing" if has_test_images(content.study) else "all scored images"
        blocks: list[Block] = [_verdict(found), *content.charts(*self.charts)]
        blocks.append(Table(_COLUMNS, tuple(_row(each) for each in found)))
        note = (
            f"{_MEANING} Beside each stands the pruned configuration of the same ratio or budget that was best on the "
            "images that decide (beside the fine-tuned dense model, the chosen trial). Accuracies and differences, in "
            f"points with 95 % intervals of paired images, are of {images}; an interval says nothing of other seeds."
        )
        lost = f" {plural(failed, 'control')} failed." if failed else ""
        blocks.append(Paragraph(note + lost, is_small=True))
        return Chapter("Does pruning pay?", tuple(blocks))


def _verdict(found: list[BesideControl]) -> Callout:
    known = [each for each in found if each.difference is not None]
    ahead = [each for each in known if each.difference is not None and each.difference.interval[0] > 0]
    behind = [each for each in known if each.difference is not None and each.difference.interval[1] < 0]
    undecided = len(known) - len(ahead) - len(behind)
    if not known:
        return Callout("Not compared", "Single images were not kept, so that nothing can be paired.", "plain")
    text = (
        f"Of {plural(len(known), 'control')}, the pruned model beside it is more accurate than {len(ahead)} and less "
        f"accurate than {len(behind)}; {undecided} cannot be told apart from it."
    )
    if behind:
        worst = min(behind, key=lambda each: each.difference.effect if each.difference is not None else 0.0)
        assert worst.difference is not None
        text += f" The furthest ahead is {_name(worst)}, by {-worst.difference.effect:.2f} points."
    return Callout("Pruned models against controls", text, "warn" if behind else "good" if not undecided else "plain")


def _name(each: BesideControl) -> str:
    return f"{each.control['label']} ({each.control['amount']})"


def _row(each: BesideControl) -> tuple[str, ...]:
    row, difference = each.control, NONE
    if each.difference is not None:
        low, high = each.difference.interval
        difference = f"{signed(each.difference.effect)} ({signed(low)} to {signed(high)})"
    beside = NONE if each.pruned is None else f"{describe_trial(each.pruned)}: {percent(each.pruned['accuracy'], 2)}"
    return (
        row["label"],
        row["amount"],
        str(row["seed"]),
        percent(row["macs_share"], 0),
        percent(each.accuracy, 2),
        beside,
        difference,
    )
