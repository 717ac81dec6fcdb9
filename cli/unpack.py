"""subcompress unpack."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress_cli import choices
from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import INPUT, base_option, json_option, model_option, output_option, print_json
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option("The network of FILE, for an ONNX file of a network that is none of the named ones.")
@base_option()
@output_option("The file to write: dense weights if it ends in .safetensors, a graph if it ends in .onnx.", "OUT")
@option(
    "--self-unfolding",
    is_flag=True,
    help="Write an ONNX file of a few kilobytes that computes its own weights in ONNX Runtime.",
    group=OUTPUT,
)
@option(
    "--dtype",
    type=click.Choice(choices.DTYPES),
    help="Round the weights of a .safetensors file to this type.  [default: the type they were trained in]",
    group=OUTPUT,
)
@json_option
def unpack(
    file: Path,
    model_name: str | None,
    output: Path,
    base: str | None,
    self_unfolding: bool,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Rebuild the weights of FILE, check them, and write them as safetensors or ONNX."""
    import subcompress
    from subcompress_cli.finding import network_for
    from subcompress_cli.rebuilding import rebuilding

    traced = model_name is not None or (output.suffix == ".onnx" and dtype is None)  # else refused by `unpack`
    module = network_for(file, model_name, base) if traced else None
    with rebuilding(file) as done:
        subcompress.unpack(file, output, module, base=base, self_unfolding=self_unfolding, dtype=dtype, done=done)
    sizes = {"file_bytes": file.stat().st_size, "output_bytes": output.stat().st_size}
    if as_json:
        print_json({"output": output, **sizes})
    else:
        answer(f"{output}: {sizes['output_bytes']} bytes, rebuilt from {sizes['file_bytes']}")
        if self_unfolding and sizes["output_bytes"] > (dense := subcompress.info(file)["dense_bytes"]):
            answer(f"its weights themselves take {dense} bytes: without --self-unfolding it is smaller")
