"""subcompress verify."""

from dataclasses import asdict
from pathlib import Path

import click

import subcompress
from subcompress_cli.finding import network_for
from subcompress_cli.networks import data_options, data_set, loss_and_metric, model_option
from subcompress_cli.options import INPUT, base_option, json_option, print_json, say
from subcompress_cli.rebuilding import rebuilding
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option()
@data_options()
@base_option
@click.option("--loss", metavar="NAME", help="As to fit.  [default: cross-entropy]")
@click.option("--metric", metavar="NAME", help="As to fit.  [default: goes with the loss]")
@click.option(
    "--device", default="auto", show_default=True, help="Of the metric: auto (CUDA where it works), cpu or cuda."
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
    loss: str | None,
    metric: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Rebuild FILE's weights on every backend and compare digests; with --data, the metric on the test split too, in
    ONNX Runtime, or in torch where the network has no graph."""
    from subcompress.rebuild.backends import available  # which imports NumPy, and help texts do not

    data, task = data_set(data_name, data_dir, model_name), loss_and_metric(loss, metric)
    module = None if data is None else network_for(file, model_name, base)
    with rebuilding(file, len(available())) as done:
        found = subcompress.verify(file, data, module, base=base, device=device, **task, done=done, say=say)
    if as_json:
        print_json({k: v for k, v in asdict(found).items() if v is not None} | {"ok": found.ok})
    else:
        for backend, equal in found.backends.items():
            answer(f"{backend:12} {'the same bits' if equal else 'OTHER BITS than were packed'}")
        if found.value is not None:
            answer(f"test {found.metric} {found.value:.4f}, in {found.engine}")
        if found.note is not None:
            say(f"no graph was measured: {found.note}")
    if not found.ok:
        say("error: the rebuilt weights are not the packed ones: fetch the file again, or report this machine")
        ctx.exit(1)
