"""The command line: parses, calls the library, prints. A new command is one file and one line here."""

from __future__ import annotations

import importlib

import click

from subcompress import __version__
from subcompress.support.suggestions import suggestion
from subcompress_cli.errors import Group
from subcompress_cli.options import say

SECTIONS = {
    "Train and pack": ("init", "fit", "pack", "dim"),
    "Inspect and rebuild": ("info", "verify", "unpack", "predict"),
    "Compare and report": ("compare", "report", "runs"),
    "Share and serve": ("push", "pull", "serve", "export"),
    "This machine": ("doctor",),
}
"""Commands by workflow, as help shows them."""

COMMANDS = tuple(name for names in SECTIONS.values() for name in names)
"""Each the name of a module here and of the command in it, which is imported when it is used."""


class Commands(Group):
    """Those of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"subcompress_cli.{cmd_name}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError for a command that does not exist, with those that may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each section with the first sentence of their help."""
        for title, names in SECTIONS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(120)) for name, command in found if command])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="subcompress")
def main() -> None:
    """Keep a PyTorch model as a few hundred bytes: a seed and d small integers, which rebuild the same weights bit for
    bit on any device.

    To start: fit a network, pack the run into a file, verify it, unpack it. `subcompress COMMAND --help` explains each
    command.
    """
    from subcompress.remote.transport import LISTENERS

    if say not in LISTENERS:
        LISTENERS.append(say)
