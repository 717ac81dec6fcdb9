"""The weights' digest: 16 bytes of a two-level SHA-256 over names, shapes, dtypes and values (docs/FORMAT.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from subcompress.support.threads import for_each
from subcompress.tensors.layout import Layout

CHUNK = 1 << 22
"""Bytes of one chunk: chunks are independent, so that they can be hashed in parallel and while streaming."""

SIZE = 16

FEW = 1 << 20
"""Bytes that are hashed before another thread has begun."""


@dataclass(frozen=True)
class Chunk:
    """Bytes [at, at + size) of tensor `index` of the layout: chunk `number` of the digest."""

    number: int
    index: int
    at: int
    size: int


def chunks_of(layout: Layout) -> Iterator[Chunk]:
    """All chunks, in the digest's order."""
    number = 0
    for index, spec in enumerate(layout):
        for at in range(0, spec.nbytes, CHUNK):
            yield Chunk(number, index, at, min(CHUNK, spec.nbytes - at))
            number += 1


def weights_digest(layout: Layout, tensors: Mapping[str, memoryview]) -> bytes:
    """tensors: name -> little-endian bytes of the tensor, nbytes of them. Returns the first 16 bytes of the root."""
    return root_digest(layout, chunk_digests(layout, tensors))


def chunk_digests(layout: Layout, tensors: Mapping[str, memoryview]) -> list[bytes]:
    """Those of all chunks, in order."""
    return hash_chunks([tensors[layout.tensors[x.index].name][x.at : x.at + x.size] for x in chunks_of(layout)])


def hash_chunks(chunks: Sequence[memoryview]) -> list[bytes]:
    """`chunk_digest` of each, on several threads where they are many bytes."""
    if sum(map(len, chunks)) < FEW:
        return [chunk_digest(chunk) for chunk in chunks]
    found = [b""] * len(chunks)

    def work(i: int) -> None:
        found[i] = chunk_digest(chunks[i])

    for_each(work, range(len(chunks)))
    return found


def chunk_digest(data: memoryview | bytes) -> bytes:
    """SHA-256 of the bytes of one chunk."""
    return hashlib.sha256(data).digest()


def root_digest(layout: Layout, chunks: Sequence[bytes]) -> bytes:
    """The weights' digest from those of all chunks, in order."""
    root = hashlib.sha256(hashlib.sha256(layout.text()).digest())
    for chunk in chunks:
        root.update(chunk)
    return root.digest()[:SIZE]
