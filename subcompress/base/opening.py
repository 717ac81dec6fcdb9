"""A base from where it lies: a file, a folder, the Hub, or tensors at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress.base.held import HUB, Base, BaseReference
from subcompress.base.mapping import mapped
from subcompress.errors import SubcompressError, one_line
from subcompress.layout import holdable
from subcompress.lazy import torch
from subcompress.remote import COMMIT, Reference, weights_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What is looked for in a folder or a repository, the first that is there."""

MANY_TIMES, AND_MORE = 4, 1 << 26
"""A base of the Hub that a file names is fetched if it is no larger than so many times what the file says that its
weights take, and so many bytes more."""


def open_base(source: Any, name: str | None = None) -> Base:
    """A base from a safetensors file, a torch state dict (read with weights_only=True), a folder with either,
    `hub:ORG/NAME[@REV]`, a module, or tensors by name. name: what files call it, `hub:ORG/NAME[@COMMIT]` for instance,
    where another can be had under that name.

    Raises SubcompressError for what is none of these, and for tensors that no state dict of a network holds.
    """
    if isinstance(source, Base):
        found = source
    elif isinstance(source, Mapping):
        found = Base(_copies(_tensors(source, "the mapping")), "a state dict")
    elif not isinstance(source, (str, os.PathLike)) and isinstance(source, torch.nn.Module):
        found = Base(_copies(_tensors(source.state_dict(), "the module")), type(source).__name__)
    elif str(source).startswith(HUB):
        found = _of_hub(str(source))
    else:
        found = Base(_read(weights_file(Path(source))), Path(os.path.abspath(source)).name)
    if name is None:
        return found
    plain, _, revision = name.partition("@")
    if plain.startswith(HUB):
        Reference.of(plain)
    if revision and not COMMIT.fullmatch(revision):
        raise SubcompressError(f"a base is named with its commit, 40 hex digits, or with none; given {name}")
    return Base(found.arrays, plain, revision)


def find_base(reference: BaseReference, nbytes: int, source: Any = None) -> Base:
    """The base that a file was made on, `source` or, without one, fetched from the Hub. nbytes: of the file's weights.

    Raises SubcompressError where it is another one, naming both digests, or cannot be had.
    """
    if source is None and not reference.name.startswith(HUB):
        raise SubcompressError(
            f"the file holds what was added to a base, {reference.name} (digest {reference.digest.hex()}): "
            "give that one with --base"
        )
    if source is not None:
        found = open_base(source)
    else:
        most = MANY_TIMES * nbytes + AND_MORE
        found = _of_hub(reference.where, most, cached=True)
        if found.digest != reference.digest:  # the cache may hold another file of that commit, or a damaged one
            found = _of_hub(reference.where, most)
    found.require(reference)
    return found


def _of_hub(name: str, most: float = float("inf"), cached: bool = False) -> Base:
    fetched = weights_of(name, WEIGHTS, most, cached=cached)
    return Base(_read(fetched.path), f"{HUB}{fetched.id}", fetched.commit)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is at hand may be trained further; a base stays as it is."""
    return {name: t if t.is_meta else t.detach().cpu().clone() for name, t in tensors.items()}


def weights_file(path: Path) -> Path:
    """The weights in a folder, or the file itself. Raises SubcompressError where there is none."""
    if os.path.isdir(path):
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        parts = list(path.glob("*.index.json"))
        has = f"has its weights in several files ({parts[0].name}): make one of them" if parts else "holds neither"
        raise SubcompressError(f"a base folder holds {' or '.join(WEIGHTS)}; {path} {has}, and name that file")
    if not os.path.isfile(path):
        hint = (
            f"; {HUB}{path} would be a repository of the Hub"
            if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", str(path))
            else ""
        )
        raise SubcompressError(f"a base is a file, a folder or {HUB}ORG/NAME; {path} is not there{hint}")
    return path


def _read(path: Path) -> Mapping[str, Tensor | np.ndarray]:
    """The tensors of a torch state dict, or of a safetensors file as arrays. Raises SubcompressError for anything
    else."""
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
                f"a base is read with weights_only=True, tensors and nothing else; {path} is refused: "
                f"{one_line(e, 160)}"
            ) from e
        return _tensors(found, str(path))
    held = mapped(path)
    if list(held) == ["z"]:
        raise SubcompressError(f"a base holds weights; {path} is a subcompress file: unpack it first")
    if not held:
        raise SubcompressError(f"a base holds dense tensors; {path} holds none")
    return held


def _tensors(found: Any, what: str) -> dict[str, Tensor]:
    """The dense tensors of a state dict, also where it lies under the one usual key."""
    if isinstance(found, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            inner = found.get(key)
            if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
                found = inner
                break
    if not isinstance(found, Mapping) or not all(isinstance(k, str) for k in found):
        raise SubcompressError(f"a base is a state dict, tensors by name; {what} holds a {type(found).__name__}")
    held = {k: v for k, v in found.items() if isinstance(v, torch.Tensor) and holdable(v)}
    if not held:
        raise SubcompressError(f"a base holds dense tensors; {what} holds none")
    return held
