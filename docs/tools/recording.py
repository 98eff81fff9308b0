r"""Record a command in a terminal, and write the recording as two animated SVGs, light and dark.

pip install termtosvg-ng
python docs/tools/recording.py artifacts/pictures/quickstart cleanai quickstart

writes quickstart_light.svg and quickstart_dark.svg. Time passes faster in them (`--speed`), and no frame is shorter
than `--frame` seconds. `--keep FILE` keeps the recording itself, and `--from FILE` draws it again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

Event = tuple[float, str]
"""Seconds since the beginning, and what the terminal was sent then."""

THEMES = {
    "light": {"fg": "#1f2933", "bg": "#eef2f6", "dim": "#7b8794", "green": "#2f7d4f", "magenta": "#b83280"},
    "dark": {"fg": "#d9e2ec", "bg": "#161b22", "dim": "#627d98", "green": "#7bc98f", "magenta": "#f687b3"},
}
_TYPING = 0.06
_LAST = 4.0


def record(words: Sequence[str], columns: int, rows: int) -> Iterator[Event]:
    """Run a command in a terminal of its own, and yield what it prints."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(rows))
        os.execvp(words[0], list(words))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    began, pending = time.monotonic(), b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not read:
            break
        pending += read
        text = pending.decode(errors="ignore")
        pending = pending[len(text.encode()) :]
        sys.stdout.write(text)
        sys.stdout.flush()
        yield time.monotonic() - began, text
    os.waitpid(process, 0)


def shortened(events: Sequence[Event], command: str, speed: float, frame: float) -> list[Event]:
    """Return a prompt with the command being typed, and then the events, faster and in frames of a least length."""
    shown: list[Event] = [(0.0, "$ ")]
    shown += [(0.5 + place * _TYPING, letter) for place, letter in enumerate(command)]
    start = shown[-1][0] + 0.4
    shown.append((start, "\r\n"))
    last, gathered = start, ""
    for seconds, text in events:
        moment = start + seconds / speed
        gathered += text
        if moment - last >= frame:
            shown.append((moment, gathered))
            last, gathered = moment, ""
    return [*shown, (last + frame, f"{gathered}$ ")]


def cast(events: Sequence[Event], columns: int, rows: int) -> str:
    """Return a recording in version 2 of asciinema's format."""
    header = {"version": 2, "width": columns, "height": rows}
    return "\n".join(json.dumps(line) for line in [header, *([seconds, "o", text] for seconds, text in events)]) + "\n"


def theme(colors: dict[str, str]) -> dict[str, str]:
    """Return the colours of a theme in the order of asciinema's format; blue, cyan and white are those of text."""
    names = ("dim", "dim", "green", "dim", "fg", "magenta", "fg", "fg")
    return {"fg": colors["fg"], "bg": colors["bg"], "palette": ":".join([colors[name] for name in names] * 2)}


def draw(recording: str, out: Path) -> None:
    """Write a recording as SVGs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recording.cast"
        file.write_text(recording, encoding="utf-8")
        for name, colors in THEMES.items():
            palette, svg = Path(folder) / f"{name}.json", out.with_name(f"{out.name}_{name}.svg")
            palette.write_text(json.dumps(theme(colors)), encoding="utf-8")
            command = ["-m", "termtosvg", "render", str(file), str(svg), "-t", "window_frame", "--theme", str(palette)]
            subprocess.run([sys.executable, *command, "-D", str(int(_LAST * 1000))], check=True)
            sys.stdout.write(f"{svg}: {svg.stat().st_size / 1000:.0f} kB\n")


def main(words: list[str] | None = None) -> None:
    """Record a command, or draw a recording again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--speed", type=float, default=15.0)
    parser.add_argument("--frame", type=float, default=0.3)
    parser.add_argument("--keep", type=Path, help="a file for the recording, at its own pace")
    parser.add_argument("--from", dest="recording", type=Path, help="draw what --keep wrote")
    parser.add_argument("out", type=Path, help="the pictures, without _light.svg")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    if options.recording is not None:
        lines = options.recording.read_text(encoding="utf-8").splitlines()[1:]
        events = [(seconds, text) for seconds, _, text in map(json.loads, lines)]
    else:
        events = list(record(options.command, options.columns, options.rows))
    if options.keep is not None:
        options.keep.write_text(cast(events, options.columns, options.rows), encoding="utf-8")
    shown = shortened(events, " ".join(options.command), options.speed, options.frame)
    draw(cast(shown, options.columns, options.rows), options.out)


if __name__ == "__main__":
    main()
