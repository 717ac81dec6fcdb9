"""subcompress doctor."""

from __future__ import annotations

from dataclasses import asdict

import click

from subcompress_cli.help import Command
from subcompress_cli.options import json_option, print_json


@click.command(cls=Command)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what this machine can compute with, and say how to repair what does not work.

    It tries torch, CUDA, Triton, each provider of ONNX Runtime and each backend. The exit status is 1 if one is broken.
    """
    import subcompress

    findings = subcompress.doctor()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.name:18} {finding.found}")
        for finding in findings:
            if finding.mend:
                click.echo(f"fault: {finding.name.strip()} {finding.found}; {finding.mend}", err=True)
    if any(finding.mend for finding in findings):
        ctx.exit(1)
