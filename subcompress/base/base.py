"""What a file says of its base, the base at hand, and both.

theta = base + scale * integer. A `BaseReference` is what a file says of its base, a `Base` the tensors at hand,
`OnBase` both: how the tensors of the base become those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from subcompress.base.changes import MARK, Changes, split
from subcompress.base.names import FLOATS
from subcompress.errors import SubcompressError
from subcompress.remote.references import PREFIX
from subcompress.support.lazy import torch
from subcompress.tensors.digest import chunk_digests, chunks_of, root_digest
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
from subcompress.tensors.rounding import rounded

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB = PREFIX


@dataclass(frozen=True)
class BaseReference:
    """name: `hub:ORG/NAME`, or the name of a file for people to read, and behind a mark what is changed of it;
    revision: the commit, 40 hex digits, where it has one; digest: 16 bytes, of its tensors sorted by name; count: how
    many those are.

    Tensor `strip` + n of the base is tensor `add` + n of the model, its floats converted to `dtype` where that is not
    empty; unused: the numbers of those that the model lacks, in the sorted order.
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
        """The name of the base itself."""
        return split(self.name)[0]

    @property
    def changes(self) -> Changes:
        """What is changed of the base."""
        return split(self.name)[1]

    @property
    def where(self) -> str:
        """What to give a command to get it."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    def renamed(self, name: str) -> str | None:
        """What the model calls the base's tensor, None for one that the prefix excludes."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None

    def layout(self, base: Layout) -> Layout:
        """The model's part of the base's layout, in its order. Raises SubcompressError where they do not fit."""
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


class Base:
    """The tensors of a base, sorted by name, as they lie in its file (a safetensors file is mapped, not read).

    arrays: by name, BF16 as uint16, in memory that other tensors may share: nobody writes to it. left_out: by name what
    its file holds beside them, and why that cannot be used. notes: what a person should know of it, a line each.
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
                f"a base is named in at most {MAX_NAME} bytes without control characters; given {name[:80]!r}: "
                "rename it, or give --base-name"
            )
        if bad := next((n for n in tensors if not is_valid_text(n)), None):
            raise SubcompressError(
                f"a tensor's name is text of at most {MAX_NAME} bytes; given {bad[:80]!r}: rename it"
            )
        if meta := next((n for n, t in tensors.items() if not isinstance(t, np.ndarray) and t.is_meta), None):
            raise SubcompressError(f"a base has values; its {meta} is on the meta device: materialise it first")
        order = sorted(tensors, key=str.encode)
        self.layout = Layout.of({n: tensors[n] for n in order})
        self.arrays = {n: array_of(tensors[n]) for n in order}
        self.name, self.revision, self.left_out = name, revision, dict(left_out or {})
        self.notes: tuple[str, ...] = ()
        self._rounded: WeakValueDictionary[tuple[str, np.dtype], np.ndarray] = WeakValueDictionary()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The same as torch's tensors."""
        return {n: tensor_of(array) for n, array in self.arrays.items()}

    def rounded(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A tensor in that dtype, see `rounding.rounded`: one array for all who hold it at a time."""
        if (held := self.arrays[name]).dtype == dtype:
            return held
        if (found := self._rounded.get((name, dtype))) is None:
            found = self._rounded[name, dtype] = np.array(rounded(held, dtype))  # its own: views keep it alive
        return found

    @cached_property
    def _chunk_digests(self) -> list[bytes]:
        return chunk_digests(self.layout, _raw(self.arrays))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes over names, shapes, dtypes and values (docs/FORMAT.md, section 11)."""
        return root_digest(self.layout, self._chunk_digests)

    @cached_property
    def digest_by_chunk(self) -> dict[tuple[str, int], bytes]:
        """The digest of the chunk that begins at that byte of a tensor: what a file keeps need not be hashed again."""
        return {
            (self.layout.tensors[chunk.index].name, chunk.at): found
            for chunk, found in zip(chunks_of(self.layout), self._chunk_digests, strict=True)
        }

    def check_unchanged(self) -> None:
        """Raise SubcompressError where the values are no longer those of the digest: a file was written over."""
        if root_digest(self.layout, chunk_digests(self.layout, _raw(self.arrays))) != self.digest:
            raise SubcompressError(
                f"a base stays as it is while a file is made on it; {self.name} has changed: give it back its values, "
                "and begin anew"
            )

    def changed(self, changes: Changes) -> Base:
        """The base with those changes, which its name says; itself without any."""
        if not changes:
            return self
        found = Base(changes.applied(self.arrays), f"{self.name}{MARK}{changes}", self.revision, self.left_out)
        found.notes = tuple(changes.notes(self.arrays))
        return found

    def matching(self, reference: BaseReference) -> Base | None:
        """The base that a file was made on: this one, or this one changed as the file says; None for another."""
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
                f"the file was made on {reference.where}, whose tensors have digest {reference.digest.hex()}; "
                f"{self.name} has {self.digest.hex()}: give that base with --base"
            )


def _raw(arrays: Mapping[str, np.ndarray]) -> dict[str, memoryview]:
    return {n: raw_bytes(a) for n, a in arrays.items()}


@dataclass(frozen=True, eq=False)
class OnBase:
    """A base at hand, and how a model stands on it."""

    reference: BaseReference
    base: Base

    @cached_property
    def layout(self) -> Layout:
        """Tensors of the model that the base has, in the order of a file on it: sorted by their names in the base."""
        return self.reference.layout(self.base.layout)

    @cached_property
    def _places(self) -> dict[str, tuple[str, np.dtype]]:
        """By name in the model: the name in the base, and the model's dtype."""
        unused = set(self.reference.unused)
        names = [n for i, n in enumerate(self.base.arrays) if i not in unused]
        return {spec.name: (n, DTYPES[spec.dtype]) for n, spec in zip(names, self.layout, strict=True)}

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def values(self, name: str) -> np.ndarray:
        """The base's values of a tensor of the model, in the model's dtype: in the base's memory, where it has that."""
        held, dtype = self._places[name]
        return self.base.rounded(held, dtype)

    def array(self, name: str) -> np.ndarray:
        """The same, read-only."""
        view = self.values(name).view()
        view.flags.writeable = False
        return view

    def tensor(self, name: str) -> Tensor:
        """The same as a tensor on the CPU."""
        return tensor_of(self.values(name))

    def chunk_digest(self, name: str, at: int) -> bytes | None:
        """The digest of a chunk of a tensor, where it is the base's."""
        held, dtype = self._places[name]
        return self.base.digest_by_chunk.get((held, at)) if self.base.arrays[held].dtype == dtype else None

    def reals(self, name: str, lo: int = 0, n: int | None = None) -> np.ndarray:
        """The same as real numbers in a row, two a complex value: n of them from number `lo` on."""
        held, dtype = self._places[name]
        flat = self.base.arrays[held].reshape(-1)
        flat = flat.view(np.float32) if flat.dtype == np.complex64 else flat
        return rounded(flat[lo : None if n is None else lo + n], DTYPES["F32"] if dtype == np.complex64 else dtype)

    def loaded(self, module: nn.Module) -> nn.Module:
        """The module, with the base's values in every tensor that the base has."""
        state = module.state_dict()
        with torch.no_grad():
            for spec in self.layout:
                state[spec.name].copy_(self.tensor(spec.name))
        return module
