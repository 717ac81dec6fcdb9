"""subcompress unpack."""

from pathlib import Path

import click

import subcompress
from subcompress_cli.finding import network_for
from subcompress_cli.networks import model_option
from subcompress_cli.options import FILE, INPUT, base_option, json_option, print_json
from subcompress_cli.rebuilding import rebuilding
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option()
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="OUT",
    help="dense .safetensors, or .onnx (of a network that is not known by its layout, --model names it).",
)
@base_option
@click.option("--self-unfolding", is_flag=True, help="An .onnx of kilobytes, which computes its own weights.")
@click.option("--dtype", metavar="NAME", help="Round a .safetensors' weights: fp32, fp16 or bf16.")
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
    traced = model_name is not None or output.suffix == ".onnx"
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
