r"""A benchmark of everything that keeps a GPU waiting, in at most four minutes on a machine with one GPU.

A line a check: what was measured, and the floor (the most or the least) that it should keep to; most are ratios of two
measurements of this very run, so that they hold on any card. A section that fails says why, and the others go on.

python jobs/bench_gpu.py
python jobs/bench_gpu.py --sections budget         (latency budgets: four minutes of their own)
python jobs/bench_gpu.py --sections calibrate repair
python jobs/bench_gpu.py --device cpu --small      (toy sizes, to test this script where there is no GPU)

Exit codes: 0 all sections ran, whatever the figures; 1 a section failed; 2 there is no such device.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import bench_gpu_latency as latency
import bench_gpu_library as library
import bench_gpu_studies as studies
import torch
from bench_gpu_checks import Check, Setting

import cleanai_ray as cleanai

SECTIONS: dict[str, Callable[[Setting], Iterator[Check]]] = {
    "forward": library.bare_forward,
    "calibrate": library.calibrate,
    "sensitivity": library.sensitivity,
    "repair": library.repair,
    "latency": library.latency,
    "study": studies.jpeg_study,
    "trial": studies.trials,
    "crash": studies.crash,
    "budget": latency.budget,
}
"""The sections by name, in the order in which they run."""

USUAL = [name for name in SECTIONS if name != "budget"]
"""The sections that run where none are named: those that fit four minutes together."""


@contextmanager
def _failing_alone(section: str, failed: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a section raises, the others go on
        failed.append(section)
        reason = " ".join(str(error).split())[:300]
        print(f"FAIL  {section:12} {type(error).__name__}: {reason}", flush=True)


def run(setting: Setting, sections: Sequence[str], seconds: float) -> int:
    """Print the lines of some sections, and return the exit code."""
    failed: list[str] = []
    began = time.perf_counter()
    for section in sections:
        if time.perf_counter() - began > seconds:
            print(f"-     {section:12} left out: the {seconds:g} seconds are over", flush=True)
            continue
        with _failing_alone(section, failed):
            for check in SECTIONS[section](setting):
                print(check.line(section), flush=True)
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{time.perf_counter() - began:.0f} s; sections that failed: {', '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


def main(words: list[str]) -> int:
    """Run the benchmark, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=USUAL)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--seconds", type=float, default=220, help="no section starts after so many seconds")
    parser.add_argument("--executor", choices=["ray", "local"], default="ray", help="what runs the studies")
    options = parser.parse_args(words)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"bench_gpu: torch {torch.__version__} finds no GPU here; --device cpu --small runs every section at toy "
            "sizes",
            file=sys.stderr,
        )
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, so that no figure means anything"
    print(f"{name}, torch {torch.__version__}, cleanai_ray {cleanai.__version__}", flush=True)
    return run(
        Setting(device=device, small=options.small, executor=options.executor), options.sections, options.seconds
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
