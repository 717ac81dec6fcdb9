"""The rounding of coordinates to the integers of a file, and what those take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subcompress.errors import SubcompressError
from subcompress.format import codec
from subcompress.operators import HadamardBlocks
from subcompress.subspace import traced
from subcompress.subspace.plan import SPREAD, Part, check_options

MAX_A = 1 << 10
"""The largest frozen constant, in steps."""


LONGEST = 8.0
"""The longest step, in units of the usual one: with two bits it leaves no coordinate that is not zero."""


class Rounding:
    """Whether and how z is rounded.

    state: bits, dead and the step of each part, (2 + parts,) float64. It is a tensor, which a compiled graph reads;
    numbers would be compiled in. usual: bytes of the coordinates in steps of the usual length when rounding began, if
    it was given a room.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.operators = [part.operator for part in parts]
        self.usual = 0
        self.state = torch.tensor([0.0, 0.5] + [0.0] * len(parts), dtype=torch.float64, device="cpu")

    @property
    def bits(self) -> int:
        """Bits of a coordinate; zero before rounding begins."""
        return int(self.state[0])

    @property
    def dead(self) -> float:
        """Coordinates of up to this many steps are rounded to zero."""
        return float(self.state[1])

    @dead.setter
    def dead(self, dead: float) -> None:
        self.state[1] = dead

    @property
    def steps(self) -> list[float]:
        """The coordinates of each part are rounded to multiples of its step."""
        found: list[float] = self.state[2:].tolist()
        return found

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def begin(self, bits: int, z: Sequence[Tensor], room: int | None = None) -> None:
        """Choose the step of each part by the spread of its coordinates, and, where they would take more than `room`
        bytes so, longer steps, which leave more of them at zero. Raises SubcompressError for other bits."""
        check_options(bits, 0, "hadamard")
        steps = []
        for part, operator in zip(z, self.operators, strict=True):
            step = SPREAD[bits] * float(part.square().mean().sqrt())
            if isinstance(operator, HadamardBlocks) and operator.K:
                # The frozen constant is an integer A of steps.
                step = 1 / min(max(1, round(1 / step)), MAX_A) if step > 0 else 1.0
            steps.append(step or 1.0)
        self._set(bits, steps)
        if room is not None:
            self.usual = self.coded_bytes(z)
            self._lengthen(z, room)

    def _lengthen(self, z: Sequence[Tensor], room: int) -> None:
        """Make all steps longer by the smallest factor with which the coordinates take at most `room` bytes, as far as
        LONGEST goes. Steps that a frozen constant is a multiple of stay."""
        bits, steps = self.bits, self.steps
        free = [not (isinstance(o, HadamardBlocks) and o.K) for o in self.operators]
        low, high = 1.0, LONGEST
        if self.coded_bytes(z) <= room:
            return
        for _ in range(12):
            factor = math.sqrt(low * high)
            self._set(bits, [s * factor if f else s for s, f in zip(steps, free, strict=True)])
            low, high = (low, factor) if self.coded_bytes(z) <= room else (factor, high)
        self._set(bits, [s * high if f else s for s, f in zip(steps, free, strict=True)])

    def _set(self, bits: int, steps: Sequence[float]) -> None:
        self.state[0] = bits
        self.state[2:] = torch.tensor(steps, dtype=torch.float64, device="cpu")

    def integers(self, z: Sequence[Tensor]) -> list[Tensor]:
        """The coordinates of each part in units of its step, (d_i,) int64."""
        bits, dead = self.bits, self.dead
        return [traced.integers(part, bits, dead, s).long() for part, s in zip(z, self.steps, strict=True)]

    def coded_bytes(self, z: Sequence[Tensor]) -> int:
        """Bytes of the coded integers."""
        return len(codec.encode((c.cpu().numpy().astype(np.int32), self.bits) for c in self.integers(z)))

    def shorten(self, z: Sequence[Tensor], limit: int) -> None:
        """Round coordinates to zero, the smallest first, as few as bring `coded_bytes` to at most `limit`; all of them
        where none do."""
        sizes = torch.cat([(part / s).abs() for part, s in zip(z, self.steps, strict=True)]).sort().values
        self.dead, low, high = 0.5, 0, len(sizes)
        if self.coded_bytes(z) <= limit:
            return
        while low < high:
            middle = (low + high) // 2
            self.dead = float(sizes[middle])
            low, high = (low, middle) if self.coded_bytes(z) <= limit else (middle + 1, high)
        self.dead = float(sizes[min(low, len(sizes) - 1)])

    def entropy(self, z: Sequence[Tensor]) -> Tensor:
        """Bits of the integers under their own frequencies, (), interpolated between them, so that it is differentiable
        in z."""
        top, total = self.top, z[0].new_zeros(())
        for part, step in zip(z, self.steps, strict=True):
            at = (part / step).nan_to_num().clamp(-top, top) + top
            with torch.no_grad():
                counts = torch.bincount(at.round().long(), minlength=2 * top + 1) + 0.5
                length = -torch.log2(counts / counts.sum())
                low = at.floor().clamp(max=2 * top - 1).long()
            total = total + (length[low] + (at - low) * (length[low + 1] - length[low])).sum()
        return total

    def settings(self) -> dict[str, Any]:
        """The state as plain numbers, for a checkpoint."""
        return {"bits": self.bits, "steps": self.steps, "dead": self.dead, "usual": self.usual}

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of a checkpoint that `check` let pass."""
        self._set(settings["bits"], settings["steps"])
        self.dead, self.usual = settings["dead"], int(settings["usual"])

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise SubcompressError for settings of another subspace."""
        bits, steps, dead = settings["bits"], settings["steps"], settings["dead"]
        if bits not in (0, *SPREAD) or isinstance(bits, float):
            raise SubcompressError(f"coordinates have {', '.join(map(str, SPREAD))} bits; a checkpoint says {bits}")
        numbers = isinstance(steps, (list, tuple)) and len(steps) == len(self.operators)
        if not numbers or not all(math.isfinite(s) and (s > 0 or not bits) for s in steps):
            raise SubcompressError(
                f"the checkpoint must hold a positive step for each of {len(self.operators)} parts; it holds {steps}"
            )
        usual = settings["usual"]
        if not isinstance(usual, int) or usual < 0:
            raise SubcompressError(f"the usual bytes in the checkpoint must be at least 0; they are {usual}")
        if not isinstance(dead, (int, float)) or not 0.5 <= dead < math.inf:
            raise SubcompressError(f"the dead zone in the checkpoint must be at least 0.5 steps; it is {dead}")


__all__ = ["Rounding"]
