"""subcompress verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from subcompress_cli.help import Command
from subcompress_cli.options import (
    INPUT,
    base_option,
    data_options,
    device_option,
    json_option,
    model_option,
    print_json,
    say,
    task_options,
)
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option("The network of FILE, to measure it with --data, if it is none of the named ones.")
@data_options("Also measure the network on the test split of these data.")
@task_options()
@base_option()
@device_option("The device to measure on.")
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
    """Rebuild the weights of FILE with every backend and check that all give the packed bits.

    With --data, the network is also measured on the test split: in ONNX Runtime, or in torch if it has no ONNX graph.
    """
    import subcompress
    from subcompress.rebuild.backends import available
    from subcompress_cli.finding import network_for
    from subcompress_cli.networks import data_set, loss_and_metric
    from subcompress_cli.rebuilding import rebuilding

    data, task = data_set(data_name, data_dir, model_name), loss_and_metric(loss, metric)
    module = None if data is None else network_for(file, model_name, base).module
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
