"""The file of an adapter: a packed file under the name that PEFT gives it."""

from __future__ import annotations

from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME as NAME
from safetensors.numpy import load_file

from subcompress import format
from subcompress.errors import SubcompressError, one_line
from subcompress.format import container
from subcompress.support.files import write_bytes


def payload_in(path: Path) -> bytes | None:
    """The payload of a packed file, whatever wrote its header; None for a file of other tensors. Raises
    SubcompressError for a damaged one."""
    try:
        tensors = load_file(path)
    except Exception as e:  # what safetensors raises for damaged files has no common base
        raise SubcompressError(f"{path} is not a packed file, or is damaged ({one_line(e)}): fetch it again") from e
    return tensors["z"].tobytes() if list(tensors) == ["z"] else None


def check_file(folder: Path) -> None:
    """Raise SubcompressError if the adapter's file in a folder is there and damaged."""
    if not (path := folder / NAME).is_file():
        return
    if (payload := payload_in(path)) is None:
        raise SubcompressError(f"{path} is not an adapter of subcompress: it holds other tensors than a packed file")
    try:
        format.parse(container.wrap(payload))
    except SubcompressError as e:
        raise SubcompressError(f"{path}: {e}") from None


def make_canonical(folder: Path) -> None:
    """Write the adapter's file in a folder, if it is there, once more with the header that packed files have: PEFT
    writes another one."""
    path = folder / NAME
    if path.is_file() and (payload := payload_in(path)) is not None:
        write_bytes(path, container.wrap(payload))


__all__ = ["check_file", "make_canonical"]
