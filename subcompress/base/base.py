"""Bases and the references to them in files: theta = base + scale * integer.

A `BaseReference` is what a file records about its base, `BaseTensors` the loaded tensors, and `OnBase` the two
together: it maps the tensors of the base to those of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from subcompress.base.changes import MARK, Changes, split_changes
from subcompress.base.names import FLOATS
from subcompress.base.origin import Origin
from subcompress.errors import SubcompressError
from subcompress.operators.sketch import directions
from subcompress.remote.references import PREFIX
from subcompress.support.lazy import torch
from subcompress.tensors.digest import CHUNK, chunk_digests, chunks_of, root_digest
from subcompress.tensors.layout import (
    DTYPES,
    MAX_NAME,
    Layout,
    TensorSpec,
    array_of,
    is_valid_text,
    raw_bytes,
    tensor_of,
)
from subcompress.tensors.mapping import release_part
from subcompress.tensors.rounding import rounded

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB = PREFIX

_MAKING = threading.Lock()
"""A lock for directions: threads that rebuild parts of a matrix wait for the first one. (A base may be pickled.)"""


@dataclass(frozen=True)
class BaseReference:
    """What a file records about its base.

    name: `hub:ORG/NAME`, or the name of a file for the reader, then a mark and the changes to it, if any; revision: the
    commit, 40 hex digits, or empty; digest: 16 bytes over its tensors, sorted by name; count: the number of tensors.

    The base's tensor named `strip` + n is the model's tensor `add` + n, its floats converted to `dtype` unless that is
    empty; unused: the numbers, in sorted order, of tensors that the model lacks.
    """

    name: str
    revision: str
    digest: bytes
    count: int
    strip: str = ""
    add: str = ""
    dtype: str = ""
    unused: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """The name of the base without its changes."""
        return split_changes(self.name)[0]

    @property
    def changes(self) -> Changes:
        """The changes that are applied to the base."""
        return split_changes(self.name)[1]

    @property
    def where(self) -> str:
        """The argument of --base that gets this base."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    def renamed(self, name: str) -> str | None:
        """Return the model's name for a tensor of the base, None for one without the prefix."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None

    def layout(self, base: Layout) -> Layout:
        """Return the model's part of the base's layout, in the base's order.

        Raises SubcompressError if the two do not fit.
        """
        unused = set(self.unused)
        specs = []
        for i, spec in enumerate(base):
            if i in unused:
                continue
            if (name := self.renamed(spec.name)) is None:
                raise SubcompressError(
                    f"the base's {spec.name} does not begin with {self.strip!r} as the file says: the file is forged"
                )
            dtype = self.dtype if self.dtype and spec.dtype in FLOATS else spec.dtype
            specs.append(TensorSpec(name, dtype, spec.shape))
        return Layout(tuple(specs))


class BaseTensors:
    """The tensors of a base, sorted by name (a safetensors file is mapped, not read).

    arrays: tensors by name, BF16 as uint16, in memory that others may share: read-only. left_out: tensors that cannot
    be used, by name, and why. notes: lines for the user. origin: what is known of a base that others cannot get by its
    name, None for one that was named by its owner or is on the Hub.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor | np.ndarray],
        name: str,
        revision: str = "",
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        if not name or not is_valid_text(name):
            raise SubcompressError(
                f"a base must be named in at most {MAX_NAME} bytes without control characters; got {name[:80]!r}: "
                "rename it, or give --base-name"
            )
        if bad := next((n for n in tensors if not is_valid_text(n)), None):
            raise SubcompressError(
                f"a tensor's name must be text of at most {MAX_NAME} bytes; got {bad[:80]!r}: rename it"
            )
        if meta := next((n for n, t in tensors.items() if not isinstance(t, np.ndarray) and t.is_meta), None):
            raise SubcompressError(
                f"{meta} of the base has no values, because it is on the meta device: materialize it first"
            )
        order = sorted(tensors, key=str.encode)
        self.layout = Layout.of({n: tensors[n] for n in order})
        self.arrays = {n: array_of(tensors[n]) for n in order}
        self.name, self.revision, self.left_out = name, revision, dict(left_out or {})
        self.notes: tuple[str, ...] = ()
        self.origin: Origin | None = None
        self._directions: dict[tuple[str, np.dtype, int], tuple[np.ndarray, np.ndarray]] = {}
        self._rounded: WeakValueDictionary[tuple[str, np.dtype], np.ndarray] = WeakValueDictionary()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The arrays as torch tensors."""
        return {n: tensor_of(array) for n, array in self.arrays.items()}

    def rounded(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Return a tensor converted to a dtype (see `rounding.rounded`); concurrent users share one array."""
        if (array := self.arrays[name]).dtype == dtype:
            return array
        if (cached := self._rounded.get((name, dtype))) is None:
            cached = self._rounded[name, dtype] = np.array(
                rounded(array, dtype)
            )  # a copy of its own, which views keep alive
        return cached

    def directions(self, name: str, dtype: np.dtype, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return directions of a matrix in a dtype, made once: they depend on nothing else. See `sketch.directions`."""
        key = (name, dtype, rank)
        with _MAKING:
            if key not in self._directions:
                self._directions[key] = directions(self.rounded(name, dtype), rank)
        return self._directions[key]

    @cached_property
    def _chunk_digests(self) -> list[bytes]:
        return chunk_digests(self.layout, _raw(self.arrays), release_part)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes over names, shapes, dtypes and values (docs/FORMAT.md, section 11)."""
        return root_digest(self.layout, self._chunk_digests)

    @cached_property
    def digest_by_chunk(self) -> dict[tuple[str, int], bytes]:
        """The digest of each chunk by tensor name and first byte, so that unchanged tensors are not hashed again."""
        return {
            (self.layout.tensors[chunk.index].name, chunk.at): found
            for chunk, found in zip(chunks_of(self.layout), self._chunk_digests, strict=True)
        }

    def check_unchanged(self) -> None:
        """Raise SubcompressError if the values no longer have the digest: the file was overwritten."""
        if root_digest(self.layout, chunk_digests(self.layout, _raw(self.arrays), release_part)) != self.digest:
            raise SubcompressError(
                f"the base {self.name} has changed while a file was made from it: restore its values, and start again"
            )

    def changed(self, changes: Changes) -> BaseTensors:
        """Return the base with changes applied, which its name then records; itself if there are none."""
        if not changes:
            return self
        found = BaseTensors(changes.applied(self.arrays), f"{self.name}{MARK}{changes}", self.revision, self.left_out)
        found.notes, found.origin = tuple(changes.notes(self.arrays)), self.origin
        return found

    def matching(self, reference: BaseReference) -> BaseTensors | None:
        """Return the base that a file was made on: this one, or this one changed as the file says; None if neither
        is."""
        known = self.__dict__.get("digest") == reference.digest
        if reference.changes and not known and all(i < len(self.arrays) for i, _ in reference.changes.rows):
            found = self.changed(reference.changes)
            if (found.digest, len(found.layout)) == (reference.digest, reference.count):
                return found
        return self if (self.digest, len(self.layout)) == (reference.digest, reference.count) else None

    def require(self, reference: BaseReference) -> None:
        """Raise SubcompressError, with both digests, unless this is the base that a file was made on."""
        if self.digest != reference.digest or len(self.layout) != reference.count:
            raise SubcompressError(
                f"the file was made on {reference.where}, with the digest {reference.digest.hex()}, but "
                f"{self.name} has the digest {self.digest.hex()}: give the former with --base"
            )


def _raw(arrays: Mapping[str, np.ndarray]) -> dict[str, memoryview]:
    return {n: raw_bytes(a) for n, a in arrays.items()}


@dataclass(frozen=True, eq=False)
class OnBase:
    """A loaded base and a reference to it: how a model maps onto the base."""

    reference: BaseReference
    base: BaseTensors

    @cached_property
    def layout(self) -> Layout:
        """The model's tensors that the base has, in the order of a file on it: sorted by their names in the base."""
        return self.reference.layout(self.base.layout)

    @cached_property
    def _sources(self) -> dict[str, tuple[str, np.dtype]]:
        """The model's name -> the name in the base, and the model's dtype."""
        unused = set(self.reference.unused)
        names = [n for i, n in enumerate(self.base.arrays) if i not in unused]
        return {spec.name: (n, DTYPES[spec.dtype]) for n, spec in zip(names, self.layout, strict=True)}

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.base.layout}

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def values(self, name: str) -> np.ndarray:
        """Return the base's values of a model's tensor in the model's dtype, without a copy if the base has that
        dtype."""
        source, dtype = self._sources[name]
        return self.base.rounded(source, dtype)

    def own(self, name: str) -> tuple[TensorSpec, np.ndarray]:
        """Return a model's tensor as the base has it: its name, dtype and shape there, and its values, unconverted."""
        source, _ = self._sources[name]
        return self._specs[source], self.base.arrays[source]

    def array(self, name: str) -> np.ndarray:
        """Return `values` as a read-only array."""
        view = self.values(name).view()
        view.flags.writeable = False
        return view

    def tensor(self, name: str) -> Tensor:
        """Return `values` as a tensor on the CPU."""
        return tensor_of(self.values(name))

    def chunk_digest(self, name: str, at: int) -> bytes | None:
        """Return the digest of a chunk of a tensor; None if the base's tensor has another dtype."""
        source, dtype = self._sources[name]
        return self.base.digest_by_chunk.get((source, at)) if self.base.arrays[source].dtype == dtype else None

    def reals(self, name: str, lo: int = 0, n: int | None = None) -> np.ndarray:
        """Return n real numbers of a tensor from number `lo` on, flat; a complex value is two."""
        source, dtype = self._sources[name]
        flat = self.base.arrays[source].reshape(-1)
        flat = flat.view(np.float32) if flat.dtype == np.complex64 else flat
        part = flat[lo : None if n is None else lo + n]
        found = rounded(part, DTYPES["F32"] if dtype == np.complex64 else dtype)
        if not np.may_share_memory(found, part):
            release_part(part)
        return found

    def directions(self, name: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return directions of a model's matrix, (rows, rank) and (rank, columns) float32; see `sketch.directions`."""
        source, dtype = self._sources[name]
        return self.base.directions(source, dtype, rank)

    def holds(self, name: str, tensor: Tensor) -> bool:
        """Return whether a tensor has `values`, bit for bit; takes little memory."""
        if tensor.dtype != tensor_of(self.reals(name, 0, 0)).dtype and not tensor.is_complex():
            return False
        given = array_of(tensor).reshape(-1)
        given = given.view(np.float32) if given.dtype == np.complex64 else given
        step = CHUNK // given.itemsize

        def same(at: int) -> bool:
            own = self.reals(name, at, step)
            found = np.array_equal(own.view(np.uint8), given[at : at + step].view(np.uint8))
            release_part(own)
            return found

        source, _ = self._sources[name]
        return tuple(tensor.shape) == self.base.arrays[source].shape and all(map(same, range(0, len(given), step)))

    def loaded(self, module: nn.Module, without: Collection[str] = ()) -> nn.Module:
        """Copy the base's values into the module, except those of the tensors `without`, and return it."""
        state = module.state_dict()
        with torch.no_grad():
            for spec in self.layout:
                if spec.name not in without:
                    state[spec.name].copy_(self.tensor(spec.name))
                    release_part(self.base.arrays[self._sources[spec.name][0]])
        return module
