"""From a record to weights of any size in bounded memory: a leaf of the digest at a time.

Leaves are independent of each other: threads expand, hash and hand on one each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from subcompress.format.record import Coded, Kept, Mixed, Record, Same, Stored
from subcompress.rebuild.backends import backend_of
from subcompress.rebuild.filling import Filling, on_base, stored
from subcompress.support.threads import each
from subcompress.tensors.digest import CHUNK, Leaf, leaf_digest, leaves_of, root_digest
from subcompress.tensors.layout import raw_bytes

ALIGN = 64


Sink = Callable[[Leaf, np.ndarray], None]
"""What becomes of a leaf and its (n,) values, complex ones as pairs, BF16 as uint16: called by several threads, in any
order."""


def stream(
    record: Record, sink: Sink | None = None, *, backend: str = "cpu", done: Callable[[int], None] | None = None
) -> bytes:
    """Hand every leaf to the sink; returns the digest of the weights. Takes a few leaves of memory a thread.

    done: told the bytes of leaves that are behind us, by any thread. Raises SubcompressError for an unknown backend,
    and what the sink raises.
    """
    chosen = backend_of(backend)
    memory = chosen.memory
    coordinates = [memory.of(g.coordinates) for g in record.groups]
    specs, _ = record.layout.tensors, (record.pieces, record.patterns)  # found before threads ask for them
    # Backends that take all cores for one call take turns; hashing and writing go on beside them.
    turn = nullcontext() if chosen.beside else threading.Lock()
    mine = threading.local()
    leaves = list(leaves_of(record.layout))
    digests = [b""] * len(leaves)
    tied = _tied(record, leaves)

    def work(batch: list[Leaf]) -> None:
        if not hasattr(mine, "buffer"):
            mine.buffer = memory.empty((CHUNK + ALIGN,), "U8")
        outs: list[Any] = []
        made = Filling(record, chosen, coordinates)
        used = 0
        for leaf in batch:
            spec, entry = specs[leaf.index], record.entries[leaf.index]
            out = memory.view(mine.buffer[used : used + leaf.size], spec.real_dtype)
            used += -(-leaf.size // ALIGN) * ALIGN
            at = leaf.at // out.itemsize
            if isinstance(entry, Kept) and sink is None and (known := on_base(record).leaf(spec.name, leaf.at)):
                out = out[:0]
                digests[leaf.number] = known
            elif isinstance(entry, Kept):
                out = on_base(record).reals(spec.name, at, len(out))
            elif isinstance(entry, Stored):
                out = stored(record, record.stored_at[leaf.index] + leaf.at, leaf.size, spec.real_dtype)
            else:
                made.add(leaf.index, at, out)
            outs.append(out)
        with turn:
            made.write()
            arrays = [out if isinstance(out, np.ndarray) else memory.array(out) for out in outs]
        for leaf, v in zip(batch, arrays, strict=True):
            found = digests[leaf.number] or leaf_digest(raw_bytes(v))
            for place in (leaf, *tied.get(leaf.number, ())):
                digests[place.number] = found
                if sink is not None:
                    sink(place, v)
                if done is not None:
                    done(place.size)

    each(work, _batches(_in_order(record, leaves)))
    return root_digest(record.layout, digests)


def _tied(record: Record, leaves: list[Leaf]) -> dict[int, list[Leaf]]:
    """By the number of a leaf those of tied tensors that are the same."""
    numbers = {(leaf.index, leaf.at): leaf.number for leaf in leaves}
    found: dict[int, list[Leaf]] = {}
    for leaf in leaves:
        if isinstance(entry := record.entries[leaf.index], Same):
            found.setdefault(numbers[entry.index, leaf.at], []).append(leaf)
    return found


def _in_order(record: Record, leaves: list[Leaf]) -> list[Leaf]:
    """Leaves by group and row, so that no block is computed for each of many small tensors; stored ones come last, and
    tied ones are left out."""

    def place(leaf: Leaf) -> tuple[int, int]:
        entry = record.entries[leaf.index]
        entry = entry.items[0] if isinstance(entry, Mixed) else entry
        return (entry.group if isinstance(entry, Coded) else len(record.groups)), leaf.number

    return sorted((leaf for leaf in leaves if not isinstance(record.entries[leaf.index], Same)), key=place)


def _batches(leaves: list[Leaf]) -> Iterator[list[Leaf]]:
    """As many leaves at a time as fill one buffer."""
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
