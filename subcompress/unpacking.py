"""unpack and load: a file as dense weights, as ONNX, or inside a module."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import nn

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.expand import expand, expand_checked
from subcompress.files import replacing
from subcompress.layout import Layout
from subcompress.record import Record, Same

Export = Callable[[Record, nn.Module | None, Path], None]


def load(path: str | Path, module: nn.Module, *, check: bool = True) -> nn.Module:
    """Rebuild the file's weights into `module`, which is returned, in evaluation mode.

    check: compare the weights with the digest in the file. Raises SubcompressError for a damaged file and for a
    module with other tensors, naming the first that differs.
    """
    record, _ = format.read(path)
    return load_record(record, module, check=check)


def load_record(record: Record, module: nn.Module, *, check: bool = True) -> nn.Module:
    """`load` for a record at hand."""
    record.layout.require(Layout.of(module.state_dict()), "the model")
    module.load_state_dict(expand_checked(record) if check else expand(record), strict=True)
    return module.eval()


def unpack(
    path: str | Path, output: str | Path, module: nn.Module | None = None, *, self_unfolding: bool = False
) -> Path:
    """Write the weights of the file at `path`, checked against its digest, whole or not at all; returns the output.

    An output that ends in .safetensors is dense, with the state dict's names, shapes and dtypes; one that ends in
    .onnx is a graph, and needs the `module` to trace. self_unfolding: the graph computes its weights itself, and takes
    kilobytes (docs/ONNX.md). Raises SubcompressError.
    """
    output = Path(output)
    record, _ = format.read(path)
    if output.suffix not in (suffixes := sorted({suffix for suffix, _ in EXPORTS}, reverse=True)):
        raise SubcompressError(
            f"unpack writes {' and '.join(suffixes)} files; {output.name} is neither: rename the output"
        )
    if (kind := (output.suffix, self_unfolding)) not in EXPORTS:
        raise SubcompressError(f"a self-unfolding graph is an .onnx file; given {output.name}: rename the output")
    if os.path.exists(output) and os.path.samefile(path, output):
        raise SubcompressError(f"{output} is the file itself: give another place for what it unpacks to")
    with replacing(output) as temporary:
        EXPORTS[kind](record, module, temporary)
    return output


def _dense(record: Record, module: nn.Module | None, path: Path) -> None:
    if module is not None:
        record.layout.require(Layout.of(module.state_dict()), "the model")
    state = expand_checked(record)
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same):  # safetensors writes no tensor twice
            state[spec.name] = state[spec.name].clone()
    path.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))


def _onnx(record: Record, module: nn.Module | None, path: Path) -> None:
    from subcompress.graph import export  # onnx and onnxruntime are loaded only where they are needed

    export(record, _to_trace(record, module), path)


def _self_unfolding(record: Record, module: nn.Module | None, path: Path) -> None:
    from subcompress.graph import export_self_unfolding

    export_self_unfolding(record, _to_trace(record, module), path)


def _to_trace(record: Record, module: nn.Module | None) -> nn.Module:
    if module is None:
        raise SubcompressError("an ONNX graph is traced from the network: give it with --model")
    return load_record(record, module)


EXPORTS: dict[tuple[str, bool], Export] = {
    (".safetensors", False): _dense,
    (".onnx", False): _onnx,
    (".onnx", True): _self_unfolding,
}
"""What unpack writes, by the output's suffix and whether it unfolds itself."""
