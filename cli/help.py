"""Help texts grouped: commands by workflow, options by purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from subcompress_cli import streams

FIT = "Network and data"
BASE = "Fine-tuning a base"
GOAL = "Goal (give one)"
SEARCH = "Search"
MEASUREMENT = "Measurement"
FILE = "Subspace and file"
TRAINING = "Training"
SERVER = "Server"
HUB = "Repository on the Hub"
OUTPUT = "Output"
OTHER = "Other options"

GROUPS = (FIT, BASE, GOAL, MEASUREMENT, SEARCH, FILE, TRAINING, SERVER, HUB, OUTPUT, OTHER)
"""Titles of groups of options, in the order in which help shows them."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Option(click.Option):
    """An option of one of GROUPS.

    former: old spellings, which keep working and are shown neither in help nor by completion.
    """

    def __init__(
        self, names: Sequence[str], *, group: str = OTHER, former: Sequence[str] = (), **attributes: Any
    ) -> None:
        super().__init__([*names, *former], **attributes)
        self.group, self.former = group, frozenset(former)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Names and text, without the old spellings."""
        names = self.opts
        self.opts = [name for name in names if name not in self.former]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


def option(*names: str, group: str = OTHER, **attributes: Any) -> Decorator:
    """`click.option` with a group of the help."""
    return click.option(*names, cls=Option, group=group, **attributes)


class Command(streams.Command):
    """A command whose help shows its options by group, and which answers by `streams.answer`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group that has options."""
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections[getattr(param, "group", OTHER)].append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What click offers, without the old spellings."""
        former = {name for param in self.params for name in getattr(param, "former", ())}
        return [item for item in super().shell_complete(ctx, incomplete) if item.value not in former]


class Known(click.ParamType):  # type: ignore[type-arg]
    """Text that is often one of a few known names, which completion offers; the library checks the value."""

    name = "name"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as it is."""
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The known names that begin so; files where none does."""
        found = [CompletionItem(name) for name in self.known if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]
