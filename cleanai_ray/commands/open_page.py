"""The command `open`: report and live status of a run directory on one local page."""

from __future__ import annotations

from typing import Annotated

import typer

from cleanai_ray.commands.common import DirectoryArgument
from cleanai_ray.errors import StudyError


def open_directory(
    directory: DirectoryArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> int:
    """Serve report and live status on one page of this machine, until Ctrl-C; reads the run directory alone.

    The page is kept up to date while the study runs, and shows the report as soon as there is one.
    """
    from cleanai_ray.commands.page_server import PageServer
    from cleanai_ray.storage.run_directory import RunDirectory

    run = RunDirectory(directory)
    try:
        server = PageServer(run, port)
    except OSError as error:
        raise StudyError(f"--port is {port}, which cannot be used: {error.strerror}; 0 takes any") from error
    with server:
        print(f"{run.location} is shown on {server.url}; Ctrl-C ends it", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
