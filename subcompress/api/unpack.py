"""unpack: the weights of a file as dense weights, as ONNX, or in a folder that other libraries load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import format as packed
from subcompress.api import formats
from subcompress.api.formats import Wanted
from subcompress.api.load import load, load_record
from subcompress.base import weights_files
from subcompress.errors import SubcompressError

if TYPE_CHECKING:
    from torch import nn


def unpack(
    path: str | Path,
    output: str | Path,
    module: nn.Module | None = None,
    *,
    base: Any = None,
    self_unfolding: bool = False,
    dtype: str | None = None,
    done: Callable[[int], None] | None = None,
    format: str | None = None,
    shard_size: int | None = None,
    rank: int | None = None,
    files: str | Path | None = None,
) -> Path:
    """Rebuild the weights of a file, check them against its digest, and write them.

    Args:
        path: A packed file.
        output: The file or folder to write, whole or not at all. `.safetensors`: dense weights with the names, shapes
            and types of the state dict, written in bounded memory. `.onnx`: a graph, for which `module` is needed. With
            `self_unfolding` it may also be a folder, in which the graph gets the name of the packed file.
        module: The network from which a graph is traced.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        self_unfolding: Whether to write a graph of a few kilobytes that computes its own weights. For a fine-tune, it
            reads the base's own safetensors files, which are placed beside it, as hard links if possible.
        dtype: fp32, fp16 or bf16: round floating-point tensors to this type; for dense weights and transformers.
        done: Called from any thread, again and again, with the number of bytes that were written since the last call.
        format: `safetensors`, `onnx` or `self-unfolding`; `transformers`: a folder that `from_pretrained` loads;
            `peft`: a folder with a LoRA adapter for the base, exact where low-rank factors were trained, otherwise an
            approximation. By default the suffix of `output` decides.
        shard_size: The largest size of one file of weights in the format transformers, 5 * 10^9 bytes by default.
        rank: The rank of a LoRA adapter, where it is an approximation. 16 by default.
        files: Where configuration and tokenizer come from, for transformers and peft: a folder or
            `hub:ORG/NAME[@REV]`. By default the base's.

    Returns:
        The path of the output. If a graph was written into a folder, the path of the graph.

    Raises:
        SubcompressError: The file is damaged, its weights do not match, or the output cannot be written.
    """
    wanted = Wanted(module, dtype, done, shard_size, rank, files, base)
    place = place_of(path, Path(output), format, self_unfolding)
    unpacked(path, place, wanted, format, self_unfolding)
    return place


def place_of(path: str | Path, output: Path, format: str | None = None, self_unfolding: bool = False) -> Path:
    """Return the file or folder that `unpack` writes: for a self-unfolding graph that goes into a folder, a file there
    that is called as the packed one."""
    unfolds = format == "self-unfolding" or (self_unfolding and format in (None, "onnx"))
    if unfolds and (os.path.isdir(output) or not output.suffix):
        return output / f"{Path(path).stem}.onnx"
    return output


def unpacked(
    path: str | Path, output: Path, wanted: Wanted, format: str | None = None, self_unfolding: bool = False
) -> dict[str, Any]:
    """`unpack`; returns what there is to tell of the output, such as the error of an approximation."""
    found = formats.chosen(format, output, self_unfolding)
    formats.check_options(found, wanted, output)
    formats.check_place(found, output)
    record, _ = packed.read(path, wanted.base)
    _check_not_a_source(output, path, wanted.base)
    return formats.write(found, record, wanted, output)


def _check_not_a_source(output: Path, path: str | Path, base: Any) -> None:
    """Raise SubcompressError if the output is a file that is read."""
    taken = {"the file itself": Path(path)}
    if isinstance(base, (str, Path)) and os.path.exists(base):
        taken |= {f"its base ({file.name})": file for file in weights_files(Path(base))}
    for what, other in taken.items():
        if os.path.exists(other) and os.path.exists(output) and os.path.samefile(other, output):
            raise SubcompressError(f"{output} is {what}: give another place for what it unpacks to")


__all__ = ["load", "load_record", "unpack", "unpacked"]
