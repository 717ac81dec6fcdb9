"""Opening bases: from a file, a folder, the Hub, a module or tensors in memory."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress.base.base import HUB, BaseReference, BaseTensors
from subcompress.base.nesting import left_out_of, reason, state_in
from subcompress.base.origin import Origin, origin_of
from subcompress.errors import SubcompressError
from subcompress.remote import COMMIT, Reference, weights_of
from subcompress.remote.shards import INDEX, numbered_shards, read_indexed, read_numbered, shards_of
from subcompress.support.lazy import torch
from subcompress.tensors.layout import DTYPES, is_storable
from subcompress.tensors.mapping import map_safetensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""File names of weights in a folder or a repository; the first that exists is used."""

MANY_TIMES, AND_MORE = 4, 1 << 26
"""A base that a file names on the Hub is downloaded if it has at most MANY_TIMES the bytes of the file's dense weights,
plus AND_MORE. The tensors of a torch file are bounded by its size in the same way, because a thousand bytes can declare
that one value is repeated a trillion times."""


def open_base(source: Any, name: str | None = None) -> BaseTensors:
    """Open a base from any source.

    source: a safetensors file, a torch state dict (read with weights_only=True), the index of several such files, a
    folder with any of these, `hub:ORG/NAME[@REV]`, a module, or tensors by name. name: what files call the base, such
    as `hub:ORG/NAME[@COMMIT]` if others can get it under that name.

    Raises SubcompressError for any other source, and for tensors that no state dict of a network holds.
    """
    if isinstance(source, BaseTensors):
        found = source
    elif isinstance(source, Mapping):
        found = _open_mapping(source, "the mapping", "a state dict")
    elif not isinstance(source, (str, os.PathLike)) and isinstance(source, torch.nn.Module):
        found = _open_mapping(source.state_dict(), "the module", type(source).__name__)
    elif str(source).startswith(HUB):
        found = _open_hub(str(source))
    else:
        found = _open_local(Path(source))
    if name is None:
        return found
    plain, _, revision = name.partition("@")
    if plain.startswith(HUB):
        Reference.of(plain)
    if revision and not COMMIT.fullmatch(revision):
        raise SubcompressError(f"the commit in the name of a base must have 40 hex digits; got {name}")
    return BaseTensors(found.arrays, plain, revision, found.left_out)


def find_base(reference: BaseReference, nbytes: int, source: Any = None) -> BaseTensors:
    """Return the base that a file was made on: `source`, or, without one, a download from the Hub.

    nbytes: dense bytes of the file's weights. Raises SubcompressError if it is another base, naming both digests, or
    cannot be obtained.
    """
    if source is None and not reference.source.startswith(HUB):
        raise SubcompressError(
            f"the file is a fine-tune and needs its base, {reference.source} (digest {reference.digest.hex()}): "
            "give it with --base"
        )
    if source is not None:
        found = open_base(source)
    else:
        most = MANY_TIMES * nbytes + AND_MORE
        found = _open_hub(reference.where, most, cached=True)
        if found.matching(reference) is None:  # the cache may hold another file of that commit, or a damaged one
            found = _open_hub(reference.where, most)
    if (matching := found.matching(reference)) is None:
        found.require(reference)
    return matching or found


def _open_local(source: Path) -> BaseTensors:
    """Open the base in a file or a folder, under its name on the Hub if it is what `hub:` would open."""
    path, origin = weights_file(source), origin_of(source)
    first = next((name for name in WEIGHTS if (path.parent / name).is_file()), None)
    if origin.is_known and path.name == first:
        return _open_file(path, f"{HUB}{origin.id}", origin.commit)
    found = _open_file(path, Path(os.path.abspath(source)).name)
    found.origin = origin
    return found


def _open_hub(name: str, most: float = float("inf"), cached: bool = False) -> BaseTensors:
    fetched = weights_of(name, WEIGHTS, most, cached=cached)
    return _open_file(fetched.path, f"{HUB}{fetched.id}", fetched.commit, most)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors in memory: they may be trained further, and a base must not change."""
    return {name: t if t.is_meta else t.detach().cpu().clone() for name, t in tensors.items()}


def weights_file(path: Path) -> Path:
    """Return the file of weights in a folder, or the file itself; an index stands for its shards. Raises
    SubcompressError if there is none."""
    if os.path.isdir(path):
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        parts = sorted(path.glob(f"*{INDEX}"))
        if len(parts) == 1:
            return parts[0]
        if not parts and (files := numbered_shards(path)):
            return files[0].parent
        has = f"has several ({', '.join(p.name for p in parts[:3])})" if parts else "holds neither"
        raise SubcompressError(
            f"the folder of a base must hold {' or '.join(WEIGHTS[:2])}; {path} {has}: name the file"
        )
    if not os.path.isfile(path):
        hint = (
            f"; for a repository on the Hub, write {HUB}{path}"
            if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", str(path))
            else ""
        )
        raise SubcompressError(f"--base: no such file or folder: {path}{hint}")
    return path


def weights_files(path: Path) -> list[Path]:
    """Return all files of the base at a path: one file, or an index and its shards. Raises SubcompressError."""
    path = weights_file(path)
    if path.is_dir():
        return numbered_shards(path)
    return [path, *shards_of(path)] if path.name.endswith(INDEX) else [path]


def _open_file(path: Path, name: str, revision: str = "", most: float = float("inf")) -> BaseTensors:
    """Open the base in a file, an index or a folder with numbered files, of at most `most` bytes each."""
    read = partial(_read, most=most)
    if path.is_dir():
        tensors, left_out = read_numbered(numbered_shards(path), read)
    else:
        tensors, left_out = read_indexed(path, read) if path.name.endswith(INDEX) else read(path)
    if not tensors:
        raise _no_tensors_error(str(path), left_out)
    return BaseTensors(tensors, name, revision, left_out)


def _read(path: Path, most: float = float("inf")) -> tuple[Mapping[str, Tensor | np.ndarray], dict[str, str]]:
    """Read the tensors of a torch state dict, or the arrays of a safetensors file, and what is left out
    (`left_out_of`).

    Raises SubcompressError for other files, and for tensors that take more than `most` bytes.
    """
    try:
        with path.open("rb") as f:
            begin, size = f.read(9), f.seek(0, os.SEEK_END)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    # A safetensors file begins with a length, which may look like what a zip archive or a pickle begins with.
    table = begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < size
    if not table and (begin[:2] == b"PK" or begin[:1] == b"\x80"):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=begin[:2] == b"PK")
        except Exception as e:  # what a damaged pickle raises has no common base
            raise SubcompressError(
                f"{path} holds more than tensors, and a base is read with weights_only=True: {reason(e)}"
            ) from e
        tensors, left_out = _tensors(found, str(path))
        _check_sizes(tensors, min(most, MANY_TIMES * size + AND_MORE), path, size)
        return tensors, left_out
    arrays, left_out = map_safetensors(path)
    if list(arrays) == ["z"]:
        raise SubcompressError(f"{path} is a packed file of subcompress, not the weights of a base: unpack it first")
    return arrays, left_out


def _check_sizes(tensors: Mapping[str, Tensor], most: float, path: Path, size: int) -> None:
    """Raise SubcompressError if loaded tensors would take more than `most` bytes once each value has its own memory."""
    # In Python's integers: torch's own product of such sizes wraps around.
    sizes = {name: math.prod(t.shape) * t.element_size() for name, t in tensors.items()}
    if (total := sum(sizes.values())) > most:
        raise SubcompressError(
            f"{path} has {size} bytes, but its tensors would take {total}, most of them "
            f"{max(sizes, key=sizes.__getitem__)[:80]}: save them contiguous"
        )


def _tensors(found: Any, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the dense tensors of a state dict, perhaps nested in other mappings, and what is left out."""
    found = state_in(found, what)
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor) and is_storable(v)}
    return tensors, left_out_of(found)


def _open_mapping(found: Any, what: str, name: str) -> BaseTensors:
    tensors, left_out = _tensors(found, what)
    if not tensors:
        raise _no_tensors_error(what, left_out)
    opened = BaseTensors(_copies(tensors), name, left_out=left_out)
    opened.origin = Origin()
    return opened


def _no_tensors_error(what: str, left_out: Mapping[str, str]) -> SubcompressError:
    odd = next((f": its {name} is {kind}, convert it" for name, kind in left_out.items()), "")
    return SubcompressError(f"{what} holds no dense tensors of {', '.join(DTYPES)}, as a base must{odd}")
