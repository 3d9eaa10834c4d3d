"""`--watch`: a command again and again. On a terminal each frame takes the last one's place; else they follow."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time

from cloud_network.api.cnctl.failure import OK, Failure
from cloud_network.api.cnctl.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Run = Callable[[argparse.Namespace, Source], int]

HOME, CLEAR, TO_END_OF_LINE, TO_END = "\x1b[H", "\x1b[H\x1b[2J", "\x1b[K", "\x1b[J"
HIDE, SHOW = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"
"""The cursor, and the wrapping of what is too wide, which would make a frame higher than its lines."""


def watched(run: Run) -> Run:
    """The command, until Ctrl-C."""

    def again(arguments: argparse.Namespace, source: Source) -> int:
        in_place = sys.stdout.isatty() and not arguments.json
        with contextlib.suppress(KeyboardInterrupt):
            try:
                _frames(run, arguments, source.files.path, in_place)
            finally:
                if in_place:
                    print(SHOW, end="", flush=True)
        return OK

    return again


def _frames(run: Run, arguments: argparse.Namespace, state: str, in_place: bool) -> None:
    if in_place:
        print(HIDE + CLEAR, end="")
    while True:
        source = Source(arguments.config, state)  # afresh: a server that is down may be back
        if in_place:
            lines = _frame(run, arguments, source).splitlines()
            height = _height()
            if len(lines) >= height:
                lines[height - 2 :] = [f"… and {len(lines) - height + 2} more lines"]
            print(HOME + "".join(f"{line}{TO_END_OF_LINE}\n" for line in lines) + TO_END, end="", flush=True)
        else:
            print(_frame(run, arguments, source), flush=True)
        time.sleep(arguments.watch)


def _frame(run: Run, arguments: argparse.Namespace, source: Source) -> str:
    """All that it says, complaints included: a daemon that restarts is something to watch."""
    frame = _Frame()
    with contextlib.redirect_stdout(frame), contextlib.redirect_stderr(frame):
        try:
            run(arguments, source)
        except Failure as failure:
            print(f"cnctl: {failure}")
    return frame.getvalue()


class _Frame(io.StringIO):
    """What is printed is laid out for the real output."""

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()

    def fileno(self) -> int:
        return 1


def _height() -> int:
    try:
        return max(3, os.get_terminal_size(1).lines or 24)
    except OSError:
        return 24
