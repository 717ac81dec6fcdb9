"""subcompress verify."""

from dataclasses import asdict
from pathlib import Path

import click

import subcompress
from subcompress.backends import available
from subcompress_cli.networks import data_options, data_set, model_option, network_of
from subcompress_cli.options import INPUT, base_option, json_option, print_json, say
from subcompress_cli.progress import rebuilding
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option()
@data_options()
@base_option
@click.option(
    "--device", default="auto", show_default=True, help="Of ONNX Runtime: auto (CUDA where it works), cpu or cuda."
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path,
    model_name: str | None,
    data_name: str | None,
    data_dir: Path | None,
    base: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Rebuild FILE's weights on every backend and compare digests; with --data, the accuracy in ONNX Runtime too, of
    networks whose test split is in memory."""
    data, module = data_set(data_name, data_dir, model_name), None
    if data is not None and (name := model_name or subcompress.info(file)["layout"]):
        module = network_of(file, name, base)
    with rebuilding(file, len(available())) as done:
        found = subcompress.verify(file, data, module, base=base, device=device, done=done, say=say)
    if as_json:
        print_json({k: v for k, v in asdict(found).items() if v is not None} | {"ok": found.ok})
    else:
        for backend, equal in found.backends.items():
            answer(f"{backend:12} {'the same bits' if equal else 'OTHER BITS than were packed'}")
        if found.test_accuracy is not None:
            answer(f"test accuracy {found.test_accuracy:.4f}, in ONNX Runtime")
    if not found.ok:
        click.echo(
            "error: the rebuilt weights are not the packed ones: fetch the file again, or report this machine", err=True
        )
        ctx.exit(1)
