"""One training step over the shards of a batch. Each gives the gradient of z and the buffers that its forward pass
changed; the result does not depend on which worker ran which shard.

Two exchanges make it. The header, of which the largest value counts: whether a worker met an error, a digest of z, and
the exponents of what follows. Then the sum of integers: the gradient, the loss, and the buffers that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from subcompress.errors import SubcompressError
from subcompress.subspace.changing import restore
from subcompress.subspace.module import Subspace
from subcompress.subspace.seeds import seed_shard
from subcompress.training.sharding import exact
from subcompress.training.sharding.shards import Shards

STILL = -exact.BROKEN
"""The exponent that marks a buffer that did not change."""


@dataclass(frozen=True)
class Part:
    """What a shard, or a whole step, gives: its loss, (); the gradient of z, (d,); the buffers that it changed."""

    loss: Tensor
    gradient: Tensor
    changed: dict[str, Tensor]


class Step:
    """The steps of one training.

    Args:
        shards: Who runs what.
        subspace: What is trained.
        seed: The seed of dropout and similar draws; see `seed_shard`.
    """

    def __init__(self, shards: Shards, subspace: Subspace, seed: int) -> None:
        self.shards, self.subspace, self.z, self.seed = shards, subspace, subspace.z, seed
        self.header_bytes = self.body_bytes = 0

    def run(self, number: int, work: Callable[[torch.Generator], Tensor]) -> Tensor:
        """One step: leaves the mean gradient in `z.grad` and the combined buffers in the network; returns the mean
        loss, () float32. Both are nan where those of a shard are not finite.

        Args:
            number: The number of the step, from 0 on.
            work: Forward and backward pass of the next shard of this worker; returns its loss. It draws from the
                generator, and from torch's own, which is seeded alike.

        Raises:
            SubcompressError: What a shard met, in this worker or another; or another worker came to another z.
        """
        start, parts, failed = self._state(), list[Part](), None
        try:
            for shard in self.shards.own:
                parts.append(self._part(start, seed_shard(self.seed, number, shard), work))
        except Exception as e:
            failed = e
        whole = self._whole(start, parts, failed)
        self._put(whole.changed)
        self.z.grad = whole.gradient
        return whole.loss

    def _part(
        self, start: Mapping[str, Tensor], drawn: torch.Generator, work: Callable[[torch.Generator], Tensor]
    ) -> Part:
        """What one shard gives; the buffers are as before it."""
        self.z.grad = None
        loss = work(drawn)
        gradient = torch.zeros_like(self.z) if self.z.grad is None else self.z.grad.detach().clone()
        now = self._now()
        changed = {name: t.detach().clone() for name, t in now.items() if _differs(name, t, start[name])}
        self._put({name: start[name] for name in changed})
        return Part(loss.detach().double().reshape(()), gradient, changed)

    def _whole(self, start: Mapping[str, Tensor], parts: list[Part], failed: Exception | None) -> Part:
        """All shards of all workers as one."""
        header = self.shards.largest(self._header(start, parts, failed))
        self.header_bytes = 8 * len(header)
        error, z, negative, gradient, loss, *buffers = header.tolist()
        self.shards.agree(failed, bool(error))
        if z != -negative:
            raise SubcompressError(
                "the workers of this training computed different coordinates, because their processors or "
                "versions of torch differ: share the shards among machines of one kind"
            )
        exponents = {name: e for name, e in zip(start, buffers, strict=True) if e != STILL}
        return self._summed(start, parts, gradient, loss, exponents)

    def _header(self, start: Mapping[str, Tensor], parts: list[Part], failed: Exception | None) -> Tensor:
        """What the workers take the largest of, (5 + buffers,) int64."""
        if failed is not None:
            return torch.tensor([1, *([STILL] * (4 + len(start)))], dtype=torch.int64)
        z = exact.digest(self.z)
        gradient = max(exact.exponent(part.gradient) for part in parts)
        loss = max(exact.exponent(part.loss) for part in parts)
        buffers = [_exponent_of(name, start, parts) for name in start]
        return torch.tensor([0, z, -z, gradient, loss, *buffers], dtype=torch.int64)

    def _summed(
        self, start: Mapping[str, Tensor], parts: list[Part], gradient: int, loss: int, exponents: Mapping[str, int]
    ) -> Part:
        """The means of gradient, loss and buffers, from one sum of integers."""
        n = self.shards.count
        pieces = [_units([p.gradient for p in parts], gradient, n), _units([p.loss.reshape(1) for p in parts], loss, n)]
        pieces += [self._units_of(start[name], name, e, parts) for name, e in exponents.items()]
        pieces = [piece.to(self.z.device) for piece in pieces]
        body = self.shards.total(torch.cat(pieces))
        self.body_bytes = 8 * len(body)
        g, at_loss, *changed = body.split([len(piece) for piece in pieces])
        found = {
            name: self._buffer(start[name], sums.to(start[name].device), e)
            for (name, e), sums in zip(exponents.items(), changed, strict=True)
        }
        mean_loss = _mean(at_loss, loss, n).reshape(())
        return Part(mean_loss.float(), _mean(g, gradient, n).to(self.z.dtype), found)

    def _units_of(self, start: Tensor, name: str, e: int, parts: list[Part]) -> Tensor:
        """A buffer of this worker's shards as integers: their sum, or the first shard's as it is."""
        held = [part.changed.get(name, start) for part in parts]
        if _averaged(start, e):
            return _units([exact.reals(t) for t in held], e, self.shards.count)
        found = exact.words(held[0])
        return found if self.shards.first else torch.zeros_like(found)

    def _buffer(self, start: Tensor, sums: Tensor, e: int) -> Tensor:
        """A buffer after the step."""
        if _averaged(start, e):
            return exact.of_reals(exact.mean(sums, e, self.shards.count), start)
        return exact.of_words(sums, start)

    def _now(self) -> dict[str, Tensor]:
        """The buffers and the extra state of the network."""
        return {name: t for name, t in self.subspace.moving().items() if name != "z"}

    def _state(self) -> dict[str, Tensor]:
        """A copy of them."""
        return {name: t.detach().clone() for name, t in self._now().items()}

    def _put(self, changed: Mapping[str, Tensor]) -> None:
        """Give buffers these values."""
        with torch.no_grad():
            now = {name: t for name, t in self._now().items() if name in changed}
            restore(self.subspace.module, now, changed)


def _differs(name: str, now: Tensor, before: Tensor) -> bool:
    """Whether a buffer has changed. Raises SubcompressError if it has another shape or dtype."""
    if now.shape != before.shape or now.dtype != before.dtype:
        raise SubcompressError(
            f"--shards takes the mean of each buffer over the shards, but {name} changed its shape from "
            f"{list(before.shape)} to {list(now.shape)}: train with --shards 1"
        )
    return not torch.equal(exact.words(now), exact.words(before))


def _exponent_of(name: str, start: Mapping[str, Tensor], parts: list[Part]) -> int:
    """The exponent of a buffer in this worker's shards; STILL if none of them changed it."""
    held = [part.changed[name] for part in parts if name in part.changed]
    if not held:
        return STILL
    if not (held[0].is_floating_point() or held[0].is_complex()):
        return exact.LOWEST
    return max(exact.exponent(exact.reals(t)) for t in (start[name], *held))


def _averaged(buffer: Tensor, e: int) -> bool:
    """Whether the mean of the shards is taken; else what the first of them has, as it is."""
    return (buffer.is_floating_point() or buffer.is_complex()) and e != exact.BROKEN


def _units(held: list[Tensor], e: int, count: int) -> Tensor:
    """The sum of tensors in integers; zeros where a number is not finite."""
    if e == exact.BROKEN:
        return torch.zeros_like(held[0], dtype=torch.int64)
    return torch.stack([exact.integers(t, e, count) for t in held]).sum(0)


def _mean(total: Tensor, e: int, count: int) -> Tensor:
    """Their mean over all shards; nan where a number was not finite."""
    if e == exact.BROKEN:
        return torch.full_like(total, torch.nan, dtype=torch.float64)
    return exact.mean(total, e, count)


__all__ = ["Part", "Step"]
