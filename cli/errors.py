"""Turning SubcompressError into one line on stderr and exit status 1."""

import shlex
from typing import Any

import click

from subcompress import SubcompressError
from subcompress.errors import ToldError, missing_package
from subcompress.support.interruption import Terminated, interruptions
from subcompress.support.world import rank

COMMAND = "subcompress.command"
"""The key, in click's context, of the command as it was typed."""

INTERRUPTED = dict.fromkeys(("fit", "dim", "compare"), "run the same command again to continue") | {
    "serve": "nothing was served",
    "push": "nothing was published, unless it had just ended; it is safe to run the same command again",
    "export": "the model folders that are there are complete; it is safe to run the same command again",
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
        try:
            with interruptions():
                return super().invoke(ctx)
        except ToldError:
            ctx.exit(1)
        except SubcompressError as e:
            click.echo(f"error: {' '.join(str(e).split())}", err=True)
            ctx.exit(1)
        except ModuleNotFoundError as e:
            if (error := missing_package(e, f"subcompress {ctx.invoked_subcommand}")) is None:
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except (KeyboardInterrupt, Terminated) as e:
            then = INTERRUPTED.get(ctx.invoked_subcommand or "", "nothing was written")
            if not rank():  # of several workers, one says it
                click.echo(f"interrupted: {then}", err=True)
            ctx.exit(143 if isinstance(e, Terminated) else 130)
