"""Draw the top of a report's page, light and dark, as PNGs.

python docs/tools/report_picture.py artifacts/quickstart/report.html artifacts/pictures/report

writes report_light.png and report_dark.png. It needs playwright and Chromium or Chrome
(`--browser` names another one).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import sync_playwright

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_COLOURS = 256


def main(words: list[str] | None = None) -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1012)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("report", type=Path, help="report.html of a run directory")
    parser.add_argument("out", type=Path, help="the pictures, without _light.png")
    options = parser.parse_args(words)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": options.width, "height": options.height}, color_scheme=scheme)
            page.goto(options.report.resolve().as_uri())
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(2000)  # charts are drawn by scripts
            file = options.out.with_name(f"{options.out.name}_{scheme}.png")
            page.screenshot(path=str(file))
            with Image.open(file) as picture:  # a palette: a third of the size
                picture.convert("RGB").quantize(_COLOURS).save(file, optimize=True)
            sys.stdout.write(f"{file}: {file.stat().st_size / 1000:.0f} kB\n")
        browser.close()


if __name__ == "__main__":
    main()
