"""The chapter with everything needed to run a study again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import counted, plural
from cleanai_ray.analysis.risks.calibration_in_training import weights_are_given
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Code, Column, Heading, Paragraph, Table
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.storage.schemas import OK

_FACT_COLUMNS = (Column("", 0.22), Column("", 0.78))


def run_facts(study: StudyFrames) -> Table:
    """Return the few facts of the run that the cover shows."""
    environment = study.environment
    model, data = as_mapping(study.study.get("model")), as_mapping(study.study.get("data"))
    succeeded = int((study.results["status"] == OK).sum())
    name, source = str(model.get("name") or model.get("factory") or ""), str(data.get("name") or "")
    on_what = " on ".join(filter(None, [name, source]))
    trials = f"{plural(len(study.results), 'trial')}, {succeeded} succeeded"
    rows = [
        ("study", ": ".join(filter(None, [on_what, trials]))),
        ("target", study.target or ""),
        ("run", _join(_date(environment.get("started")), _lasted(environment), _versions(environment))),
    ]
    return Table(_FACT_COLUMNS, tuple(row for row in rows if row[1]), has_header=False)


@CHAPTERS.register("reproduction")
class Reproduction(ChapterWriter):
    """Command, versions, hardware, seeds, digests and the study file."""

    position = 70

    def write(self, content: ReportContent) -> Chapter:
        """Return the chapter."""
        study = content.study
        blocks: list[Block] = []
        command = study.environment.get("command")
        if command:
            blocks += [Heading("Command"), Code(str(command))]
        rows = [row for row in _facts(study) if row[1]]
        if rows:
            blocks += [Heading("Where and with what"), Table(_FACT_COLUMNS, tuple(rows), has_header=False)]
        text = study.study_text.rstrip() or (yaml.safe_dump(dict(study.study), sort_keys=False) if study.study else "")
        if text:
            blocks += [Heading("Study file"), Code(text)]
        else:
            blocks.append(Paragraph("The run directory holds no study.yaml: the run cannot be repeated from it."))
        return Chapter("How to reproduce", tuple(blocks))


def _facts(study: StudyFrames) -> list[tuple[str, str]]:
    environment = study.environment
    hardware, cluster = as_mapping(environment.get("hardware")), as_mapping(environment.get("cluster"))
    samples, digests = as_mapping(environment.get("samples")), as_mapping(environment.get("digests"))
    sweep = as_mapping(study.study.get("sweep"))
    calibration = as_mapping(as_mapping(study.study.get("data")).get("calibration"))
    devices = sorted(set(study.results["device"].drop_nulls()))
    hosts = sorted(set(study.results["node"].drop_nulls()))
    cores, nodes = _count(hardware.get("cores"), "core"), _count(cluster.get("nodes"), "node")
    gpus = ", ".join(str(gpu) for gpu in hardware.get("gpus") or [])
    return [
        ("started", _date(environment.get("started"))),
        ("took", _lasted(environment)),
        ("earlier runs", _earlier(environment.get("earlier_runs"))),
        ("versions", _versions(environment, all_packages=True)),
        ("platform", str(environment.get("platform") or "")),
        ("processor", _join(hardware.get("cpu"), cores, _unit(hardware.get("memory_gib"), "GiB"))),
        ("GPUs", gpus or ("none" if "gpus" in hardware else "")),
        ("cluster", _join(nodes, _number(cluster.get("cpus"), "CPU"), _number(cluster.get("gpus"), "GPU"))),
        ("trials ran on", _join(", ".join(hosts), ", ".join(devices))),
        ("calibration samples", _swept(calibration.get("samples"))),
        ("seeds", _join(_seed("trials", sweep.get("seeds")), _seed("calibration draw", calibration.get("seed")))),
        ("samples", ", ".join(f"{name} {count}" for name, count in samples.items() if type(count) is int)),
        ("preprocessing", _preprocessing(as_mapping(environment.get("preprocessing")))),
        ("calibration images", _withheld(study, samples.get("calibration_withheld_from_training"))),
        ("images that choose", _selection(study, samples)),
        ("notes", "; ".join(map(str, environment.get("information") or []))),
        ("source", str(environment.get("commit") or "")),
        ("digests", ", ".join(f"{name} {value}" for name, value in digests.items() if value)),
    ]


def _swept(samples: Any) -> str:
    return ", ".join(map(str, samples)) if isinstance(samples, list) else ""


def _preprocessing(steps: Mapping[str, Any]) -> str:
    crop = " x ".join(map(str, steps.get("crop", [])))
    numbers = {name: " ".join(f"{value:g}" for value in steps.get(name, [])) for name in ("mean", "std")}
    resized = f"shorter side {steps['resize']} pixels, {steps.get('interpolation')}" if "resize" in steps else ""
    return _join(
        resized, f"centre {crop}" if crop else "", *(f"{name} {text}" for name, text in numbers.items() if text)
    )


def _withheld(study: StudyFrames, flag: Any) -> str:
    """Say what is known of calibration images in training: a study knows of its own training and fine-tuning alone."""
    if not isinstance(flag, bool):
        return ""
    if weights_are_given(study):
        own = "kept out of fine-tuning" if flag else "also used for fine-tuning"
        return f"{own}; the dense weights were given, and may have been trained on them"
    return "kept out of training" if flag else "also used for training"


def _selection(study: StudyFrames, samples: Mapping[str, Any]) -> str:
    """Say which images of another split chose the trial; "" where some of those that are scored did."""
    split = samples.get("selection_split")
    if split is None:
        return ""
    count = f"{plural(samples.get('selection', 0), 'image')} of split {split}"
    if split != "train":
        return f"{count}, not calibrated on"
    if not weights_are_given(study):
        return f"{count}, kept out of training and calibration"
    return f"{count}, kept out of fine-tuning and calibration; the dense weights may have been trained on them"


def _versions(environment: Mapping[str, Any], *, all_packages: bool = False) -> str:
    packages = as_mapping(environment.get("packages"))
    chosen = packages if all_packages else {name: packages[name] for name in ("torch", "ray") if name in packages}
    own = environment.get("version")
    python = environment.get("python")
    words = [f"CleanAI-Ray {own}" if own else "", f"Python {str(python).split()[0]}" if python else ""]
    return ", ".join(filter(None, [*words, *(f"{name} {version}" for name, version in chosen.items() if version)]))


def _date(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return "" if value is None else str(value)


def _earlier(runs: Any) -> str:
    """Return the number of earlier runs in this directory, and when the first one began."""
    found = [as_mapping(run) for run in runs] if isinstance(runs, list) else []
    first = _date(found[0].get("started")) if found else ""
    return _join(plural(len(found), "run"), f"the first started {first}" if first else "") if found else ""


def _lasted(environment: Mapping[str, Any]) -> str:
    """Return the duration of the run, and the number of trials that were complete before: it leaves out their time."""
    seconds, complete = environment.get("seconds"), environment.get("trials_complete_before")
    if not isinstance(seconds, (int, float)):
        return ""
    before = f" ({plural(complete, 'trial')} complete before)" if isinstance(complete, int) and complete else ""
    return f"{format_seconds(seconds)}{before}"


def _seed(name: str, value: Any) -> str:
    if value is None or value == []:
        return ""
    return f"{name}: {', '.join(str(seed) for seed in value) if isinstance(value, list) else value}"


def _count(value: Any, noun: str) -> str:
    return plural(value, noun) if isinstance(value, int) else ""


def _unit(value: Any, unit: str) -> str:
    return f"{value:g} {unit}" if isinstance(value, (int, float)) else ""


def _number(value: Any, noun: str) -> str:
    return counted(f"{value:g}", noun) if isinstance(value, (int, float)) else ""


def _join(*words: Any) -> str:
    return "; ".join(str(word) for word in words if word)
