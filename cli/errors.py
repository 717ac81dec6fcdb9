"""Turning SubcompressError into one line on stderr and exit status 1."""

import shlex
import signal
from typing import Any

import click

from subcompress import SubcompressError
from subcompress.errors import ToldError
from subcompress.support.world import rank

COMMAND = "subcompress.command"
"""The key, in click's context, of the command as it was typed."""

INTERRUPTED = dict.fromkeys(("fit", "dim", "compare"), "the same command goes on where it was") | {
    "serve": "nothing was served",
    "push": "nothing was published, unless it had just ended; the same command is safe to give again",
    "export": "the model folders that are there are whole; the same command is safe to give again",
}
"""What an interruption leaves of a command; of all others, nothing."""


class Group(click.Group):
    """A group that prints a SubcompressError as `error: ...` on stderr; anything else is a bug and shows itself.

    An interruption (Ctrl-C, SIGTERM) ends with one line too, and with the status that shells expect of it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what was typed, for runs to remember."""
        ctx.meta[COMMAND] = shlex.join(["subcompress", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        handler = signal.signal(signal.SIGTERM, _terminate) if _main_thread() else None
        try:
            return super().invoke(ctx)
        except ToldError:
            ctx.exit(1)
        except SubcompressError as e:
            click.echo(f"error: {' '.join(str(e).split())}", err=True)
            ctx.exit(1)
        except (KeyboardInterrupt, _Terminated) as e:
            then = INTERRUPTED.get(ctx.invoked_subcommand or "", "nothing was written")
            if not rank():  # of several workers, one says it
                click.echo(f"interrupted: {then}", err=True)
            ctx.exit(143 if isinstance(e, _Terminated) else 130)
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)


class _Terminated(BaseException):
    """SIGTERM was received."""


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
