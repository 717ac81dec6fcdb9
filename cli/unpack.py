"""subcompress unpack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.errors import SubcompressError
from subcompress.remote.references import HF, split_options
from subcompress.remote.references import PREFIX as HUB
from subcompress_cli import choices
from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import INPUT, base_option, json_option, model_option, output_option, print_json
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from torch import nn

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
"""Units of a number of bytes, in capitals."""


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, such as 500MB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Raises SubcompressError for another text."""
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMG]?I?B)?", str(value).upper())
        if not found or (unit := found[2] or "") not in UNITS:
            raise SubcompressError(f"--shard-size must be a number of bytes, such as 5GB or 500MB; got {value!r}")
        return round(float(found[1]) * UNITS[unit])


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@model_option(
    "The network of FILE, to write an ONNX file. Needed only if neither its tensors nor its base show which network it "
    "is. For the formats transformers and peft, hf:DIR_OR_ID[@REVISION] is the place of configuration and tokenizer, "
    "if that is not the base."
)
@base_option()
@output_option(
    "The file or folder to write: dense weights if it ends in .safetensors, a graph if it ends in .onnx. "
    "--self-unfolding also takes a folder, and names the graph in it after FILE.",
    "OUT",
)
@option(
    "--format",
    "format_name",
    type=click.Choice(choices.FORMATS),
    help="What to write. transformers: a folder that from_pretrained loads. peft: a folder with a LoRA adapter for the "
    "base, which is exact after a fit with --act-on lora or sketch, otherwise an approximation.  [default: by the "
    "suffix of OUT]",
    group=OUTPUT,
)
@option(
    "--self-unfolding",
    is_flag=True,
    help="Write an ONNX file of a few kilobytes that computes its own weights in ONNX Runtime. For a fine-tune, it "
    "reads the safetensors files of the base, which are placed beside it, as hard links if possible.",
    group=OUTPUT,
)
@option(
    "--dtype",
    type=click.Choice(choices.DTYPES),
    help="Round the weights of a .safetensors file or of the format transformers to this type.  [default: the type "
    "they were trained in]",
    group=OUTPUT,
)
@option(
    "--shard-size",
    type=Bytes(),
    metavar="SIZE",
    help="The largest size of one file of weights in the format transformers, such as 500MB.  [default: 5GB]",
    group=OUTPUT,
)
@option("--rank", type=int, help="The rank of the adapter in the format peft.  [default: 16]", group=OUTPUT)
@json_option
def unpack(
    file: Path,
    model_name: str | None,
    output: Path,
    base: str | None,
    format_name: str | None,
    self_unfolding: bool,
    dtype: str | None,
    shard_size: int | None,
    rank: int | None,
    as_json: bool,
) -> None:
    """Rebuild the weights of FILE, check them, and write them as safetensors, ONNX, or a folder for other libraries."""
    import subcompress
    from subcompress.api.formats import Wanted
    from subcompress.api.unpack import place_of, unpacked
    from subcompress_cli.rebuilding import rebuilding

    output = place_of(file, output, format_name, self_unfolding)
    folder = format_name in choices.FOLDERS
    module = None if folder else _traced(file, model_name, output, base, dtype)
    files = _files(model_name) if folder and model_name is not None else None
    with rebuilding(file) as done:
        wanted = Wanted(module, dtype, done, shard_size, rank, files, base)
        told = unpacked(file, output, wanted, format_name, self_unfolding)
    sizes = {"file_bytes": file.stat().st_size, "output_bytes": _bytes(output)}
    if as_json:
        print_json({"output": output, **sizes, **told})
        return
    answer(f"{output}: {sizes['output_bytes']} bytes, rebuilt from {sizes['file_bytes']}")
    for line in _beside(output, told):
        answer(line)
    if "relative_error" in told:
        answer(_error(told))
    if (
        not told.get("base_files")
        and self_unfolding
        and sizes["output_bytes"] > (dense := subcompress.info(file)["dense_bytes"])
    ):
        answer(f"the weights themselves take {dense} bytes, so that the file is smaller without --self-unfolding")


def _traced(file: Path, model_name: str | None, output: Path, base: str | None, dtype: str | None) -> nn.Module | None:
    """The network to trace a graph of, or to compare with."""
    if model_name is None and (output.suffix != ".onnx" or dtype is not None):  # else refused by `unpack`
        return None
    from subcompress_cli.finding import network_for

    return network_for(file, model_name, base).module


def _files(model_name: str) -> str:
    """The place of configuration and tokenizer that --model names. Raises SubcompressError."""
    if not model_name.startswith(HF):
        raise SubcompressError(
            f"the formats {' and '.join(choices.FOLDERS)} take --model hf:DIR_OR_ID; got {model_name!r}"
        )
    place, _ = split_options(model_name)
    local = Path(place).expanduser()
    if local.exists() or place.startswith(("/", ".", "~")):
        return str(local)
    return f"{HUB}{place}"


def _bytes(output: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    paths = output.rglob("*") if output.is_dir() else [output]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _beside(output: Path, told: dict[str, Any]) -> list[str]:
    """Describe the files beside a graph, for people."""
    lines = [
        f"{output.parent / found['name']}: the base, {found['bytes']} bytes, {found['placed']}"
        for found in told.get("base_files", ())
    ]
    if converted := told.get("converted_bytes"):
        lines.append(
            f"at its start, a session converts {converted} bytes of the base to the network's dtype and holds "
            "them in memory"
        )
    return lines


def _error(told: dict[str, Any]) -> str:
    """What an adapter loses, for a person."""
    if not told["approximation"]:
        return f"the adapter of rank {told['rank']} is exact up to rounding"
    return (
        f"the adapter of rank {told['rank']} is an approximation: it lacks {told['relative_error']:.2%} of what the "
        f"file adds to the linear layers of its base (Frobenius norm); a higher --rank lacks less"
    )
