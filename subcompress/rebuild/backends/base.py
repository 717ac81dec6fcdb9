"""What a backend is, and the walk that those without a kernel take over the rows of a group."""

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
    """fill: the weights of segments, sorted by rows, from (d,) int32 coordinates, all of them in `memory`, on `device`;
    there: whether it can run on this machine; beside: whether calls from several threads run beside each other, each on
    one core; else one call takes all of them; seeds: whether `fill` takes starts that are SeededRows."""

    device: str
    memory: Memory
    fill: Fill
    there: Callable[[], bool]
    beside: bool = False
    seeds: bool = False

    def on(self, device: torch.device) -> Backend:
        """The same for one of several devices of that kind."""
        return self if device.type == "cpu" else replace(self, memory=Device(str(device)))


def pieces(operator: ExactOperator, c: Any, segments: Sequence[Segment]) -> Iterator[tuple[Segment, slice, Any]]:
    """The integers of the segments' rows, a bounded number at a time and each computed once: segment, place in it,
    integers."""
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
