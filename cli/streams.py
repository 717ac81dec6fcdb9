"""What a command answers goes to stdout; whatever else prints, to stderr: a user's factory, data, metric or module, a
library, a child process. So what reads the answer, such as JSON, reads nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import click

from subcompress.errors import printable

_answers: list[IO[str]] = []
"""Where the command under way answers; empty where there is none."""


def answer(text: Any = "", **kwargs: Any) -> None:
    """Print a line of what a command was asked for, on stdout; what a file brings into it cannot steer the terminal."""
    click.echo(printable(text) if isinstance(text, str) else text, file=_answers[-1] if _answers else None, **kwargs)


def answers() -> IO[str]:
    """The stream that `answer` writes to."""
    return _answers[-1] if _answers else sys.stdout


class Command(click.Command):
    """A command that answers by `answer`: while it runs, everything else that prints to stdout writes to stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        with apart():
            return super().invoke(ctx)


@contextmanager
def apart() -> Iterator[None]:
    """While the block lasts, what prints to stdout, in Python, in C or in a child process, writes to stderr, and
    `answer` alone to stdout."""
    before = sys.stdout
    if _answers or before is None or sys.stderr is None:  # it is so already; closed by whoever started this process
        yield
        return
    kept = _kept(before)
    out = before if kept is None else os.fdopen(os.dup(kept), "w", encoding=before.encoding, errors=before.errors)
    _answers.append(out)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout = before
        _answers.pop()
        if kept is not None:
            with suppress(OSError):  # nobody reads it any more, which was said where it was written
                out.close()
            os.dup2(kept, 1)
            os.close(kept)


def _kept(stdout: IO[str]) -> int | None:
    """A copy of the process's stdout, which from now on is its stderr; None where Python's stdout is another stream, as
    in a test, or stderr is closed."""
    try:
        if stdout.fileno() != 1:
            return None
        stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError):
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(kept)
        return None
    return kept
