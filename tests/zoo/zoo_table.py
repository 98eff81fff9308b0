"""The table of the zoo as Markdown: what was found of every architecture, and a sentence of what it sums up to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo_after import EQUAL
from zoo_processes import LIMIT
from zoo_reference import OTHER, SAME, UNKNOWN
from zoo_trial import EXACT, LEAST_MACS, MACS, RATIO

BEGIN, END = "<!-- zoo -->", "<!-- end of zoo -->"
Finding = Mapping[str, Any]

_HEADS = re.compile(r"(\d+) attention modules? .* keeps? all heads")
_LAYERS = re.compile(r"(?:layer '[^']*' keeps its width|(\d+) layers \(.*\) keep their width): (.*)")
_LEAST = re.compile(r"the budget cannot be met: .* leaves ([\d.e+]+), and ([\d.e+]+) are allowed")
_KINDS = {
    "shuffled, or cut into": "shuffled or in blocks",
    "cannot be followed": "not followed",
    "does not run without": "width in the code",
    "would change by more": "channels mixed",
    "recurrent layer": "recurrent reader",
    "parametrised": "parametrised",
    "are coupled": "all coupled",
    "only training runs": "read in training",
    "was not reached": "not tried",
}
"""Kinds of reasons, by a part of the sentence that gives them."""
_ENDS = ("wrong", "crashed", "not done")
HEADINGS = {
    "name": "architecture",
    "input": "input",
    "outcome": f"ratio {RATIO:g}",
    "groups": "groups",
    "macs": "MACs left",
    "error": "largest difference",
    "loads": "loaded",
    "half": f"macs {MACS:g}",
    "repair": "repair",
    "onnx": "ONNX",
    "seconds": "seconds",
    "reference": "torch-pruning",
    "remark": "layers that stay",
}
"""Headings of the columns by what they hold."""
FULL = {"repair": "repair", "ONNX": "onnx"}
"""Findings whose errors are told in full behind the table, by the word that they begin with."""
_REFITTED = re.compile(r"(\d+) of (\d+), ([\d.]+)")
_LONGEST = 240
_AT_LEAST = " at least"


def markdown(found: Mapping[str, Finding], num_listed: int) -> str:
    """Return the table, with sentences before it, and the refusals in full behind it.

    Args:
        found: Findings of the architectures that were tried, by name.
        num_listed: Number of architectures that the zoo lists.
    """
    tried = {key: each for key, each in found.items() if each.get("outcome") != "missing"}
    lines = [
        *_summary(tried, num_listed),
        "",
        f"| {' | '.join(HEADINGS.values())} |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(_row(key, each)) + " |" for key, each in tried.items()),
    ]
    others = [f"- {key}: {_line(told)}" for key, each in tried.items() for told in _told(each)]
    return "\n".join([*lines, *(["", "In full:", "", *others] if others else [])]) + "\n"


def _summary(tried: Mapping[str, Finding], num_listed: int) -> list[str]:
    outcomes = Counter(outcome_of(each) for each in tried.values())
    exact = outcomes["pruned"] + outcomes["keeps"]
    ends = "".join(f", {outcomes[name]} {name}" for name in _ENDS if outcomes[name])
    slowest = max((each.get("seconds", 0.0) for each in tried.values()), default=0.0)
    half = sum(map(is_half, tried.values()))
    late = sum(outcome_of(each) in ("pruned", "keeps") and not each.get("half") for each in tried.values())
    lines = [
        f"Of {num_listed} architectures listed {len(tried)} were tried. Of these {exact} are pruned exactly at ratio "
        f"{RATIO:g} (largest difference below {EXACT:g}; {outcomes['keeps']} keep some layers at their width, and "
        f"warnings name these), {outcomes['refused']} refused by name{ends}; {half} reach half of their MACs as "
        f"exactly. The slowest took {slowest:.0f} s of processor time for both; {LIMIT} s are allowed for each"
        f"{f', in which {late} reached the ratio alone' if late else ''}.",
    ]
    referred = [each for each in tried.values() if "reference" in each]
    if referred:
        runs = [each for each in referred if is_number(each["reference"])]
        means = Counter(each.get("meaning", UNKNOWN) for each in runs)
        lines += [
            "",
            f"torch-pruning's own pruner, tried on {len(referred)} of them in the same way, makes {len(runs)} smaller "
            f"models that run: {means[SAME]} compute what the dense model does with the removed channels silent, "
            f"{means[OTHER]} something else, and {means[UNKNOWN]} have layers of which that cannot be said.",
        ]
    return [*lines, *_summary_of_what_follows(list(tried.values()))]


def _summary_of_what_follows(tried: Sequence[Finding]) -> list[str]:
    """Return sentences on repair and on export."""
    repaired = [each["repair"] for each in tried if "repair" in each]
    counts = [match for match in map(_REFITTED.fullmatch, repaired) if match]
    exported = [each["onnx"] for each in tried if "onnx" in each]
    lines = []
    if repaired:
        refitted, lost = (sum(int(match[part]) for match in counts) for part in (1, 2))
        whole = sum(match[1] == match[2] for match in counts)
        nearer = sum(float(match[3]) < 1 for match in counts)
        lines += [
            "",
            f"Repair in closed form was tried on {len(repaired)} of them, and runs on {len(counts)}. It refits "
            f"{refitted} of the {lost} layers that lost inputs, in {whole} models all of them. On the samples that it "
            f"read, the outputs of {nearer} are nearer to the dense model's than before.",
        ]
    if exported:
        equal = sum(each == EQUAL for each in exported)
        lines += [
            "",
            f"Export to ONNX was tried on {len(exported)} of them: {equal} compute the same in onnxruntime as in "
            f"torch, and of {len(exported) - equal} no file is written.",
        ]
    return lines


def is_half(finding: Finding) -> bool:
    """Return whether half the MACs were met, exactly."""
    half = finding.get("half", "")
    exact = finding.get("half_error", 0.0) < EXACT
    return is_number(half) and LEAST_MACS <= float(half) <= MACS and exact


def is_number(text: str) -> bool:
    """Return whether a finding is a share."""
    return text.replace(".", "").isdigit()


def outcome_of(finding: Finding) -> str:
    """Return the outcome in a word."""
    return "not done" if "ended" in finding and "outcome" not in finding else finding.get("outcome", "not done")


def _told(finding: Finding) -> Iterator[str]:
    """Yield sentences of what went wrong."""
    outcome, half = outcome_of(finding), finding.get("half", "")
    if "full" in finding:
        yield finding["full"]
    elif outcome not in ("pruned", "keeps"):
        yield f"{outcome}: {finding.get('told') or finding.get('ended', 'no finding')}"
    elif "ended" in finding:
        yield f"pruned, then {finding['ended']}"
    elif half and not (is_number(half) or half.endswith(_AT_LEAST) or _LEAST.search(half)):
        yield f"macs {MACS:g}: {half}"
    for word, name in FULL.items():
        if told := finding.get(f"{name}_told"):
            told = _line(told)
            yield f"{word}: {told if len(told) <= _LONGEST else told[:_LONGEST] + ' ...'}"


def remark(warnings: Sequence[str]) -> str:
    """Return how many layers keep their width, and what kind of reason they have."""
    heads, layers = 0, Counter[str]()
    for told in warnings:
        if match := _HEADS.match(told):
            heads += int(match[1])
        elif match := _LAYERS.match(told):
            kind = next((name for part, name in _KINDS.items() if part in match[2]), "other")
            layers[kind] += int(match[1] or 1)
    parts = [f"heads of {heads} modules"] if heads else []
    return ", ".join([*parts, *(f"{number} {kind}" for kind, number in layers.items())])


def _row(key: str, each: Finding) -> list[str]:
    error, reference = each.get("error"), each.get("reference", "")
    meaning = f", {each['meaning']}" if "meaning" in each and is_number(reference) else ""
    return [
        key,
        " x ".join(map(str, each.get("input", []))),
        outcome_of(each),
        str(each.get("groups", "")),
        f"{each['macs']:.3f}" if "macs" in each else "",
        "" if error is None else f"{error:.0e}",
        {"yes": "yes", "": ""}.get(each.get("loads", ""), "no"),
        _half(each.get("half", "")),
        each.get("repair", ""),
        each.get("onnx", ""),
        f"{each['seconds']:.0f}" if "seconds" in each else "",
        _line(reference + meaning),
        each.get("remark") or remark(each.get("warnings", [])),
    ]


def _half(half: str) -> str:
    if not half or is_number(half) or half.endswith(_AT_LEAST):
        return half
    least = _LEAST.search(half)
    return f"{MACS * float(least[1]) / float(least[2]):.3f}{_AT_LEAST}" if least else "no"


def _line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def write(document: Path, table: str) -> None:
    """Put the table between the two marks of a document, or at its end if it has none."""
    text = document.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if mark else "\n"
    document.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{table}{END}{after}", encoding="utf-8")
