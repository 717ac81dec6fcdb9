"""Checks files outside a graph that hold its weights: that they are in allowed places, and have not changed.

A graph beside a base reads the base's own safetensors files. Its metadata name them with their SHA-256, which a runtime
does not compare. Does not need torch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from subcompress.errors import SubcompressError, one_line

FILES = "base_files"
"""The key of the metadata: an object of file names with the SHA-256 of each, in hex digits."""

BASE = "base"
"""The key of the metadata that says which base this is: what --base takes."""

_PLACE = b"location"
"""The bytes before the name of every external file, as protobuf writes them."""


def check_outside(path: Path) -> None:
    """Raise SubcompressError if a graph reads files outside its folder, or if a file that its metadata name is missing
    or has changed. A graph that reads no other file is not parsed."""
    if not _holds(path, _PLACE):
        return
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # opening it will give the error
        return
    for name in sorted(set(_locations(model.graph))):
        _require_inside(path, name)
    _check_digests(path, {p.key: p.value for p in model.metadata_props})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits, computed once while the file stays as it is. Raises OSError."""
    found = os.stat(path)
    return _digest(os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=64)
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _holds(path: Path, part: bytes) -> bool:
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(part) >= 0
    except (OSError, ValueError):  # it is empty or missing; opening it will give the error
        return False


def _locations(graph: Any) -> Iterator[str]:
    """Yield the names of the files that tensors of a graph and of graphs within it lie in."""
    tensors = [*graph.initializer]
    for sparse in graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                yield from _locations(inner)
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _require_inside(path: Path, name: str) -> None:
    """Raise SubcompressError for a name that may lead out of the graph's folder on any system."""
    for kind in (PurePosixPath(name), PureWindowsPath(name)):
        if kind.is_absolute() or kind.drive or ".." in kind.parts:
            raise SubcompressError(
                f"a graph may read weights only from its own folder, but {path} names {name[:80]!r}: it is "
                "forged or was made elsewhere; get it again"
            )


def _check_digests(path: Path, metadata: dict[str, str]) -> None:
    wanted = _named_files(path, metadata.get(FILES, "{}"))
    base = metadata.get(BASE, "its base")[:200]
    for name, digest in wanted.items():
        _require_inside(path, name)
        place = path.parent / name
        try:
            found = sha256_of(place)
        except OSError as e:
            raise SubcompressError(
                f"the weights of {path} are in {place}, which cannot be read ({e.strerror or e}): put the file of "
                f"{base} there, or unpack again"
            ) from e
        if found != digest:
            raise SubcompressError(
                f"{place} has changed since {path.name} was made beside it (SHA-256 {found[:16]}..., and "
                f"{digest[:16]}... is wanted): put the file of {base} there, or unpack again"
            )


def _named_files(path: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("it is not an object of texts")
    except (ValueError, RecursionError) as e:
        raise SubcompressError(f"the metadata of {path} are damaged ({one_line(e, 80)}): get the graph again") from e
    return found
