"""Separating a command's answer, on stdout, from everything else that prints, which goes to stderr.

That includes a user's factory, data, metric or module, libraries and child processes, so that a program that reads the
answer, as JSON for example, reads nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import click

from subcompress.errors import printable

_answers: list[IO[str]] = []
"""The answer stream of the running command; empty if there is none."""


def answer(text: Any = "", **kwargs: Any) -> None:
    """Print a line of the answer on stdout, without control characters that a file may contain."""
    click.echo(printable(text) if isinstance(text, str) else text, file=_answers[-1] if _answers else None, **kwargs)


def answers() -> IO[str]:
    """Return the stream that `answer` writes to."""
    return _answers[-1] if _answers else sys.stdout


class Command(click.Command):
    """A command that prints its answer with `answer`; everything else it prints goes to stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        with redirect_stdout():
            return super().invoke(ctx)


@contextmanager
def redirect_stdout() -> Iterator[None]:
    """Redirect stdout of Python, C and child processes to stderr within the block; only `answer` writes to stdout."""
    original = sys.stdout
    if _answers or original is None or sys.stderr is None:  # already redirected, or closed by the parent process
        yield
        return
    saved = _duplicate_stdout(original)
    out = (
        original if saved is None else os.fdopen(os.dup(saved), "w", encoding=original.encoding, errors=original.errors)
    )
    _answers.append(out)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout = original
        _answers.pop()
        if saved is not None:
            with suppress(OSError):  # the reader is gone, which was reported when writing
                out.close()
            os.dup2(saved, 1)
            os.close(saved)


def _duplicate_stdout(stdout: IO[str]) -> int | None:
    """Return a copy of the process's stdout and redirect stdout to stderr; None if Python's stdout is another stream,
    or stderr is closed."""
    try:
        if stdout.fileno() != 1:
            return None
        stdout.flush()
        copy = os.dup(1)
    except (OSError, ValueError):
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(copy)
        return None
    return copy
