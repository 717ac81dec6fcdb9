"""The Backend class, and the iteration over the rows of a group for backends without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from subcompress.operators import ExactOperator
from subcompress.operators.base import CHUNK
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends.memory import Device, Memory

if TYPE_CHECKING:
    import torch

Fill = Callable[[ExactOperator, Any, Sequence[Segment]], None]


@dataclass(frozen=True)
class Backend:
    """A way to turn coordinates into weights.

    fill: computes the weights of segments, sorted by rows, from (d,) int32 coordinates, all in `memory`, on `device`;
    is_available: whether it can run on this machine; concurrent: whether each call uses one core, so that several
    threads can call it at a time; seeds: whether `fill` accepts starts that are SeededRows.
    """

    device: str
    memory: Memory
    fill: Fill
    is_available: Callable[[], bool]
    concurrent: bool = False
    seeds: bool = False

    def on(self, device: torch.device) -> Backend:
        """Return this backend for one of several devices of its kind."""
        return self if device.type == "cpu" else replace(self, memory=Device(str(device)))


def pieces(operator: ExactOperator, c: Any, segments: Sequence[Segment]) -> Iterator[tuple[Segment, slice, Any]]:
    """Yield (segment, slice of it, integers) for the segments' rows, a bounded number at a time, computing each row
    once."""
    segments = [s for s in segments if len(s.out)]
    if not segments:
        return
    chunk = max(CHUNK, operator.block)
    at = 0
    for base in range(segments[0].lo // chunk * chunk, segments[-1].hi, chunk):
        while segments[at].hi <= base:
            at += 1
        end = at
        while end < len(segments) and segments[end].lo < base + chunk:
            end += 1
        inside = segments[at:end]
        if not inside:
            continue
        first, last = max(base, inside[0].lo), min(base + chunk, inside[-1].hi)
        w = operator.rows(c, first, last)
        for s in inside:
            lo, hi = max(s.lo, first), min(s.hi, last)
            yield s, slice(lo - s.lo, hi - s.lo), w[lo - first : hi - first]
