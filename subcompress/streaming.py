"""From a record to weights of any size in bounded memory: a leaf of the digest at a time.

Leaves are independent of each other: threads expand, hash and hand on one each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from subcompress.backends import backend_of
from subcompress.digest import CHUNK, leaf_digest, root_digest
from subcompress.expand import raw_bytes, stored
from subcompress.kernels import Segment
from subcompress.layout import Layout
from subcompress.record import Coded, Record, Same
from subcompress.threads import each

ALIGN = 64


@dataclass(frozen=True)
class Leaf:
    """Bytes [at, at + size) of tensor `index` of the layout: leaf `number` of the digest."""

    number: int
    index: int
    at: int
    size: int


Sink = Callable[[Leaf, Tensor], None]
"""What becomes of a leaf and its (n,) values, complex ones as pairs: called by several threads, in any order."""


def leaves_of(layout: Layout) -> Iterator[Leaf]:
    """All leaves, in the digest's order."""
    number = 0
    for index, spec in enumerate(layout):
        for at in range(0, spec.nbytes, CHUNK):
            yield Leaf(number, index, at, min(CHUNK, spec.nbytes - at))
            number += 1


def stream(
    record: Record, sink: Sink | None = None, *, backend: str = "cpu", done: Callable[[int], None] | None = None
) -> bytes:
    """Hand every leaf to the sink; returns the digest of the weights. Takes a few leaves of memory a thread.

    done: told the bytes of leaves that are behind us, by any thread. Raises SubcompressError for an unknown backend,
    and what the sink raises.
    """
    chosen = backend_of(backend)
    coordinates = [torch.from_numpy(g.coordinates).to(chosen.device) for g in record.groups]
    firsts, specs = record.firsts, record.layout.tensors
    # Backends that take all cores for one call take turns; hashing and writing go on beside them.
    turn = nullcontext() if chosen.beside else threading.Lock()
    mine = threading.local()

    def work(batch: list[Leaf]) -> None:
        if not hasattr(mine, "buffer"):
            mine.buffer = torch.empty(CHUNK + ALIGN, dtype=torch.uint8, device=chosen.device)
        values: list[Tensor] = []
        segments: list[list[Segment]] = [[] for _ in record.groups]
        used = 0
        for leaf in batch:
            spec, entry, first = specs[leaf.index], record.entries[leaf.index], firsts[leaf.index]
            if isinstance(entry, Same):
                entry = record.entries[entry.index]
            out = mine.buffer[used : used + leaf.size].view(spec.real_dtype)
            used += -(-leaf.size // ALIGN) * ALIGN
            if isinstance(entry, Coded):
                row = first + leaf.at // out.itemsize
                segments[entry.group].append(Segment(row, out, entry.scale, entry.start))
            else:
                out.view(torch.uint8).copy_(stored(record, first + leaf.at, leaf.size))
            values.append(out)
        with turn:
            for group, c, places in zip(record.groups, coordinates, segments, strict=True):
                # A tied tensor's rows come again, earlier than those before it.
                for run in _ascending(places):
                    chosen.fill(group.operator, c, run)
            values = [v.cpu() for v in values]
        for leaf, v in zip(batch, values, strict=True):
            digests[leaf.number] = leaf_digest(raw_bytes(v))
            if sink is not None:
                sink(leaf, v)
        if done is not None:
            done(sum(leaf.size for leaf in batch))

    leaves = list(leaves_of(record.layout))
    digests = [b""] * len(leaves)
    each(work, _batches(leaves))
    return root_digest(record.layout, digests)


def _batches(leaves: list[Leaf]) -> Iterator[list[Leaf]]:
    """Leaves in order, as many at a time as fill one buffer."""
    batch: list[Leaf] = []
    used = 0
    for leaf in leaves:
        room = -(-leaf.size // ALIGN) * ALIGN
        if batch and used + room > CHUNK:
            yield batch
            batch, used = [], 0
        batch.append(leaf)
        used += room
    if batch:
        yield batch


def _ascending(segments: list[Segment]) -> Iterator[list[Segment]]:
    run: list[Segment] = []
    for s in segments:
        if run and s.lo < run[-1].hi:
            yield run
            run = []
        run.append(s)
    if run:
        yield run
