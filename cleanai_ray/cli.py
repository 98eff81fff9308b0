"""The command line, `cleanai`: pruning studies from a YAML file to a report and smaller models.

Exit codes: 0 success; 1 trials or the report failed; 2 wrong study or command; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cleanai_ray import __version__
from cleanai_ray.commands import doctor, gate, init, names, open_page, results, schema, studies
from cleanai_ray.commands.names import KINDS
from cleanai_ray.errors import CleanAIError, ReportError

__all__ = ["KINDS", "app", "main"]

COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "init": (init.init, "Write a commented study file to start from."),
    "plan": (studies.plan, "Show every trial and what is cached; computes nothing."),
    "run": (studies.run, "Run a study; resumes where part of it is done."),
    "quickstart": (studies.quickstart, "Run the study that ships with the package."),
    "status": (results.status, "Show the progress of a study."),
    "open": (open_page.open_directory, "Show status and report on one local page."),
    "report": (results.report, "Make charts, PDF and HTML again, or a joint report."),
    "compare": (results.compare, "Compare studies, and say what they show together."),
    "explain": (results.explain, "Show what a trial removed from each layer, and why."),
    "export": (results.export, "Write a pruned model for deployment."),
    "gate": (gate.gate, "Say whether a trial keeps to limits, for CI."),
    "sensitivity": (studies.sensitivity, "Measure what narrowing each group of layers costs."),
    "profile": (studies.profile, "Time groups of layers at several widths."),
    "submit": (studies.submit, "Run a study as a job on a cluster."),
    "list": (names.list_names, "List the names of methods, metrics, models and so on."),
    "schema": (schema.schema, "Write the JSON schema of study files, for editors."),
    "doctor": (doctor.doctor, "Show what this machine has, and what it lacks."),
}
"""Every command by its name, with its line in the help, in that order."""

# Without markup, help is as fast as Python starts, and a flag is shown without a value.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__)
for _name, (_command, _line) in COMMANDS.items():
    app.command(_name, short_help=_line)(_command)

_UsageError: Any = typer.BadParameter.__bases__[0]


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"cleanai {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


class LineFormatter(logging.Formatter):
    """Writes what this package notes as a plain line, and everything else with its level and logger."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        if record.name.startswith("cleanai_ray.") and record.levelno == logging.WARNING:
            return f"note: {record.getMessage()}"
        return super().format(record)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The arguments, without the program's name; by default, those of the process.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.filterwarnings("ignore", category=FutureWarning)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        code = app(args=argv, prog_name="cleanai", standalone_mode=False)
        return int(code or 0)
    except _UsageError as error:
        return _refuse(error.format_message())
    except ReportError as error:
        _refuse(str(error))
        return 1
    except CleanAIError as error:
        return _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        from cleanai_ray.storage.status import interrupted  # here, for a quick start

        words = sys.argv[1:] if argv is None else argv
        print(f"cleanai: {interrupted(fresh='--fresh' in words)}", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print(f"cleanai: {' '.join(message.split())}", file=sys.stderr)
    return 2
