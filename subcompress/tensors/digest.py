"""The weights' digest: 16 bytes of a two-level SHA-256 over names, shapes, dtypes and values (docs/FORMAT.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from subcompress.support.threads import each
from subcompress.tensors.layout import Layout

CHUNK = 1 << 22
"""Bytes of one leaf: leaves are independent, so that they can be hashed in parallel and while streaming."""

SIZE = 16

FEW = 1 << 20
"""Bytes that are hashed before another thread has begun."""


@dataclass(frozen=True)
class Leaf:
    """Bytes [at, at + size) of tensor `index` of the layout: leaf `number` of the digest."""

    number: int
    index: int
    at: int
    size: int


def leaves_of(layout: Layout) -> Iterator[Leaf]:
    """All leaves, in the digest's order."""
    number = 0
    for index, spec in enumerate(layout):
        for at in range(0, spec.nbytes, CHUNK):
            yield Leaf(number, index, at, min(CHUNK, spec.nbytes - at))
            number += 1


def weights_digest(layout: Layout, tensors: Mapping[str, memoryview]) -> bytes:
    """tensors: name -> little-endian bytes of the tensor, nbytes of them. Returns the first 16 bytes of the root."""
    return root_digest(layout, leaf_digests(layout, tensors))


def leaf_digests(layout: Layout, tensors: Mapping[str, memoryview]) -> list[bytes]:
    """Those of all leaves, in order."""
    return hashed([tensors[layout.tensors[x.index].name][x.at : x.at + x.size] for x in leaves_of(layout)])


def hashed(leaves: Sequence[memoryview]) -> list[bytes]:
    """`leaf_digest` of each, on several threads where they are many bytes."""
    if sum(map(len, leaves)) < FEW:
        return [leaf_digest(leaf) for leaf in leaves]
    found = [b""] * len(leaves)

    def work(i: int) -> None:
        found[i] = leaf_digest(leaves[i])

    each(work, range(len(leaves)))
    return found


def leaf_digest(data: memoryview | bytes) -> bytes:
    """SHA-256 of the bytes of one leaf."""
    return hashlib.sha256(data).digest()


def root_digest(layout: Layout, leaves: Sequence[bytes]) -> bytes:
    """The weights' digest from those of all leaves, in order."""
    root = hashlib.sha256(hashlib.sha256(layout.text()).digest())
    for leaf in leaves:
        root.update(leaf)
    return root.digest()[:SIZE]
