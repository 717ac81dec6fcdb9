"""Our file."""

from __future__ import annotations

from subcompress import format
from subcompress.peers.bench import Bench, Row, joined
from subcompress.rebuild.expand import expand_checked


def ours(bench: Bench) -> list[Row]:
    """The file of the run, as `pack` writes it."""
    size = bench.write("ours.safetensors", format.to_bytes(bench.record))
    value, note = bench.value(bench.loaded(expand_checked(bench.record)))
    bits = max((g.bits for g in bench.record.trained), default=0)
    note = joined(f"d = {bench.record.d} coordinates of {bits} bits", note)
    return [Row("subcompress", size, value, bench.seconds, note)]
