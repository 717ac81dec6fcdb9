"""The weights digest: 16 bytes of a two-level SHA-256 over names, shapes, dtypes and values (docs/FORMAT.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from subcompress.support.threads import for_each
from subcompress.tensors.layout import Layout

CHUNK = 1 << 22
"""Bytes of a chunk. Chunks are independent, so they can be hashed in parallel and while streaming."""

SIZE = 16

FEW = 1 << 20
"""Bytes below which one thread hashes faster than several, because starting a thread takes longer."""


@dataclass(frozen=True)
class Chunk:
    """A unit of hashing: bytes [at, at + size) of tensor `index` of the layout, chunk `number` of the digest."""

    number: int
    index: int
    at: int
    size: int


def chunks_of(layout: Layout) -> Iterator[Chunk]:
    """Yield all chunks of a layout in the digest's order."""
    number = 0
    for index, spec in enumerate(layout):
        for at in range(0, spec.nbytes, CHUNK):
            yield Chunk(number, index, at, min(CHUNK, spec.nbytes - at))
            number += 1


def weights_digest(layout: Layout, tensors: Mapping[str, memoryview]) -> bytes:
    """Compute the weights digest. tensors: name -> the tensor's little-endian bytes."""
    return root_digest(layout, chunk_digests(layout, tensors))


def chunk_digests(
    layout: Layout, tensors: Mapping[str, memoryview], done: Callable[[memoryview], None] | None = None
) -> list[bytes]:
    """Hash every chunk, in the digest's order. done: see `hash_chunks`."""
    return hash_chunks([tensors[layout.tensors[x.index].name][x.at : x.at + x.size] for x in chunks_of(layout)], done)


def hash_chunks(chunks: Sequence[memoryview], done: Callable[[memoryview], None] | None = None) -> list[bytes]:
    """Hash each chunk with `chunk_digest`, on several threads if there are many bytes; `done` is called with each chunk
    of many that was hashed, by any thread."""
    if sum(map(len, chunks)) < FEW:
        return [chunk_digest(chunk) for chunk in chunks]
    digests = [b""] * len(chunks)

    def work(i: int) -> None:
        digests[i] = chunk_digest(chunks[i])
        if done is not None:
            done(chunks[i])

    for_each(work, range(len(chunks)))
    return digests


def chunk_digest(data: memoryview | bytes) -> bytes:
    """Hash the bytes of one chunk with SHA-256."""
    return hashlib.sha256(data).digest()


def root_digest(layout: Layout, digests: Sequence[bytes]) -> bytes:
    """Combine the digests of all chunks, in order, into the weights digest."""
    root = hashlib.sha256(hashlib.sha256(layout.text()).digest())
    for digest in digests:
        root.update(digest)
    return root.digest()[:SIZE]
