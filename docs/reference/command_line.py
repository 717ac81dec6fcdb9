"""Write command-line.md from the commands themselves: `python docs/reference/command_line.py`.

A test compares the page with what this makes, so that it cannot fall behind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from subcompress_cli import SECTIONS, main
from subcompress_cli.help import GROUPS, OTHER

PAGE = Path(__file__).with_name("command-line.md")
OPENING = """# Command line

The text of `subcompress COMMAND --help`. `python -m subcompress` is the same command.
[A tour of the commands](../guides/command-line.md) shows each of them at work.
"""


def page() -> str:
    """The whole page."""
    found = [OPENING]
    for section, names in SECTIONS.items():
        found.append(f"## {section}\n")
        for name in names:
            command = main.get_command(click.Context(main), name)
            assert command is not None
            found.extend(_command(name, command))
    return "\n".join(found)


def _command(name: str, command: click.Command) -> Iterator[str]:
    """The lines of a command: usage, text, a table for each group of options."""
    context = click.Context(command, info_name=f"subcompress {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### {name}\n"
    yield f"```text\nsubcompress {name} {usage}\n```\n"
    yield _escaped(inspect.cleandoc(command.help or "")) + "\n"
    for group in GROUPS:
        records = [
            record
            for param in command.params
            if isinstance(param, click.Option) and getattr(param, "group", OTHER) == group
            if (record := param.get_help_record(context)) is not None
        ]
        if records:
            yield f"| {group} | |\n|---|---|"
            yield from (f"| `{_cell(names)}` | {_cell(_escaped(text))} |" for names, text in records)
            yield ""


def _escaped(text: str) -> str:
    """Text whose options and places are shown as code, and whose signs mean nothing to Markdown."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*|hf:\S+[^\s,;.]|FILE\.csv\S*\])", r"`\1`", text).replace("*", r"\*")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
