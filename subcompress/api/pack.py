"""pack: a finished run as one file."""

from __future__ import annotations

from pathlib import Path

from subcompress import format
from subcompress.api.bundle import write_bundle
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.subspace.module import Subspace
from subcompress.support.files import write_bytes
from subcompress.training import run

OTHERS = (".bin", ".ckpt", ".gguf", ".h5", ".npz", ".onnx", ".pb", ".pt", ".pt2", ".pth", ".tflite")
"""Ends of names under which programs expect another format."""


def pack(source: str | Path | Subspace, path: str | Path, facts: Facts | None = None, *, bundle: bool = False) -> int:
    """Write a finished run, or a trained `Subspace`, as one file. The file is written whole or not at all.

    Args:
        source: A folder that `fit` wrote, or a `Subspace` after `round`.
        path: The file to write, or the folder with `bundle`.
        facts: What a receiver must know about the input. Only for a `Subspace`; a run has its own.
        bundle: Whether to write a folder with the file and a README.md, which describes the file, names its base, and
            gives the commands that rebuild the network.

    Returns:
        The size of the file in bytes.

    Raises:
        SubcompressError: The folder is not a finished run, the subspace was not rounded, `path` has the suffix of
            another format, or the file cannot be written.
    """
    _check_name(Path(path), source)
    if isinstance(source, Subspace):
        data, folder = format.to_bytes(source.record(facts)), None
    else:
        data, folder = run.packed(source), Path(source)
        format.parse(data)  # one that was damaged is not passed on
    if bundle:
        write_bundle(data, folder, Path(path))
    else:
        write_bytes(path, data)
    return len(data)


def _check_name(path: Path, source: str | Path | Subspace) -> None:
    """Raise SubcompressError for a name that promises another format."""
    if path.suffix.lower() not in OTHERS:
        return
    name = path.with_suffix(".safetensors")
    folder = "RUN" if isinstance(source, Subspace) else source
    then = f", then subcompress unpack {name} -o {path}" if path.suffix == ".onnx" else ""
    raise SubcompressError(
        f"pack writes a .safetensors file; got the name {path}: give subcompress pack {folder} -o {name}{then}"
    )
