"""`--watch`: repeat a command. On a terminal each frame replaces the previous one; elsewhere it follows it."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable

from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.output import Exit, Failure

HOME, CLEAR, TO_END_OF_LINE, TO_END = "\x1b[H", "\x1b[H\x1b[2J", "\x1b[K", "\x1b[J"
HIDE, SHOW = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"
"""Hide or show the cursor, and turn line wrapping off or on: a wrapped line would make a frame too high."""


def repeat(run: Callable[[], Exit], interval: float, as_json: bool) -> Exit:
    """Run a command every `interval` seconds, until Ctrl-C raises KeyboardInterrupt."""
    in_place = sys.stdout.isatty() and not as_json
    try:
        if in_place:
            print(HIDE + CLEAR, end="")
        while True:
            if in_place:
                _show(_frame(run))
            else:
                _run(run)
                print("" if as_json else "\n", end="", flush=True)
            time.sleep(interval)
    finally:
        if in_place:
            print(SHOW, end="", flush=True)


def _show(frame: str) -> None:
    lines = frame.splitlines()
    height = max(3, output.height() or 24)
    if len(lines) >= height:
        lines[height - 2 :] = [f"... and {len(lines) - height + 2} more lines"]
    print(HOME + "".join(f"{line}{TO_END_OF_LINE}\n" for line in lines) + TO_END, end="", flush=True)


def _frame(run: Callable[[], Exit]) -> str:
    """Return everything that the command prints, including errors: a daemon may be restarting."""
    frame = _Frame()
    with contextlib.redirect_stdout(frame), contextlib.redirect_stderr(frame):
        _run(run)
    return frame.getvalue()


def _run(run: Callable[[], Exit]) -> None:
    """Run the command once; report an error and continue."""
    try:
        run()
    except Failure as failure:
        output.note(str(failure))


class _Frame(io.StringIO):
    """Collects output in the layout of the real standard output."""

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()

    def fileno(self) -> int:
        return 1
