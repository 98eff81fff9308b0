r"""Entry point of `ray job submit`: run a study on the cluster that the job was submitted to.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/run_study.py --study jobs/studies/quickstart.yaml --out /shared/quickstart

Exit codes are those of `cleanai run`; `ray job submit` itself returns 1 for all but 0.
"""

from __future__ import annotations

import argparse
import sys

from cleanai_ray.cli import main


def run(arguments: list[str]) -> int:
    """Run the study that the arguments name and return the exit code of `cleanai run`."""
    parser = argparse.ArgumentParser(description="Run a study on the Ray cluster that this job was submitted to.")
    parser.add_argument("--study", required=True, help="study file, relative to the working directory")
    parser.add_argument("--out", help="run directory; by default the study's output.dir")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key of the study")
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    options = parser.parse_args(arguments)
    command = ["run", options.study, "--address", "auto"]
    command += ["--out", options.out] if options.out else []
    command += [word for override in options.set for word in ("--set", override)]
    command += ["--fresh"] if options.fresh else []
    command += ["--no-report"] if options.no_report else []
    return main(command)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
