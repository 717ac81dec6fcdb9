"""The command line: parses, calls the library, prints. A new command is one file and one line here."""

import importlib

import click

from subcompress import __version__
from subcompress.remote.transport import LISTENERS
from subcompress.support.suggesting import meant
from subcompress_cli.errors import Group
from subcompress_cli.options import say

COMMANDS = (
    "fit",
    "dim",
    "pack",
    "unpack",
    "info",
    "verify",
    "compare",
    "report",
    "doctor",
    "push",
    "pull",
    "export",
    "serve",
)
"""Each the name of a module here and of the command in it, which is imported when it is used: most need torch."""


class Commands(Group):
    """Those of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"subcompress_cli.{cmd_name}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError for a command that there is not, with those that may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{meant(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="subcompress")
def main() -> None:
    """A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere."""


LISTENERS.append(say)
