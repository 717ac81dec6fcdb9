"""subcompress doctor."""

from __future__ import annotations

from dataclasses import asdict

import click

from subcompress_cli import choices
from subcompress_cli.help import TRAINING, Command, Known, option
from subcompress_cli.options import json_option, print_json, say
from subcompress_cli.streams import answer


@click.command(cls=Command)
@option(
    "--vectors",
    type=Known(*choices.VECTORS),
    default="",
    metavar="KIND",
    help=f"Use these vector instructions of the CPU: {', '.join(choices.VECTORS)}. The environment variable "
    "SUBCOMPRESS_VECTORS does the same for all commands.",
    group=TRAINING,
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, vectors: str, as_json: bool) -> None:
    """Check what this machine can compute with, and say how to repair what does not work.

    It tries torch, CUDA, Triton, each provider of ONNX Runtime and each backend. The exit status is 1 if one is broken.
    """
    import subcompress
    from subcompress.native.compiled import cpu_engine, force_kind

    with force_kind(vectors):
        cpu_engine()  # refuses what this processor does not run
        findings = subcompress.doctor()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            answer(f"{finding.name:18} {finding.found}")
        for finding in findings:
            if finding.fix:
                say(f"fault: {finding.name.strip()} {finding.found}; {finding.fix}")
    if any(finding.fix for finding in findings):
        ctx.exit(1)
