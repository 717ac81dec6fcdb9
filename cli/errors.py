"""The border where a user's mistake becomes one line and exit status 1."""

from typing import Any

import click

from subcompress import SubcompressError


class Group(click.Group):
    """A group that prints a SubcompressError as `error: ...` on stderr; anything else is a bug and shows itself."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SubcompressError as e:
            click.echo(f"error: {' '.join(str(e).split())}", err=True)
            ctx.exit(1)
