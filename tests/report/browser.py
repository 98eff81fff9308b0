"""A real Chromium for tests of pages: it opens files from disk, has no network, and notes what its console says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class OpenPage:
    """A page with what went wrong on it: `problems` are errors of scripts and requests that left the machine."""

    def __init__(self, page: Any) -> None:
        self.page, self.problems = page, list[str]()
        page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda request: self._note(request.url) if not request.url.startswith("file:") else None)

    def _note(self, text: str) -> None:
        self.problems.append(text)


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless Chromium; skips, and says why, where playwright or Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        if program is None and not own.exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        # Inside a container Chromium can have no sandbox of its own, and little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        started = playwright.chromium.launch(executable_path=program or str(own), args=arguments)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(
    started: Any, file: Path, *, width: int = 1280, scheme: str = "light", scripts: bool = True
) -> Iterator[OpenPage]:
    """Yield a file in a window of its own, without a network."""
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "java_script_enabled": scripts}
    context = started.new_context(**options, offline=True)
    context.set_default_timeout(20000)
    try:
        found = OpenPage(context.new_page())
        found.page.goto(file.as_uri())
        yield found
    finally:
        context.close()
