"""subcompress doctor."""

from dataclasses import asdict

import click

import subcompress
from subcompress.native.compiled import KINDS, VECTORS, forced, taken
from subcompress_cli.options import json_option, print_json, say
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.option(
    "--vectors",
    default="",
    metavar="KIND",
    help=f"Take these on the CPU, as the environment variable {VECTORS} asks for everything: {', '.join(KINDS)}.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, vectors: str, as_json: bool) -> None:
    """Say what this machine has to compute with, whether it works, and how to mend what does not."""
    with forced(vectors):
        taken()  # refuses what this processor does not run
        findings = subcompress.doctor()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            answer(f"{finding.name:18} {finding.found}")
        for finding in findings:
            if finding.mend:
                say(f"fault: {finding.name.strip()} {finding.found}; {finding.mend}")
    if any(finding.mend for finding in findings):
        ctx.exit(1)
