"""How far each tensor moves when the network is trained directly: measured, and made the scales of the subspace.

theta = start + scale * P z. A tensor that must move far for the loss to fall needs a large scale, whatever the size of
its start: spectral weights, layer scales and biases that start near zero, a last layer that starts small. A few steps
of Adam on all weights show it. The scale of a piece is the root mean square of its change, times a factor of D / d that
all share (benchmarks/moves.py compares rules).
"""

from __future__ import annotations

import base64
import copy
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.errors import SubcompressError, shown
from subcompress.format.describing import runs_cost, runs_of
from subcompress.operators import walsh
from subcompress.subspace.seeds import seed_everything
from subcompress.subspace.starts import Starts, moving_weights
from subcompress.support.stepping import Adam

USUAL = 30.0
"""Weights a coordinate at which the scale of a piece is the root mean square of its change. A step of Adam moves each
coordinate alike, and of the moves of more weights a coordinate less goes where the loss falls."""

POWER = 1 / 8
"""How scales grow with the number of weights per coordinate. Exponents of 0 and 1/4 are within the noise of it
(benchmarks/results/moves.md)."""

FLOAT_POWER = 1 / 2
"""The same for coordinates that are never rounded: d_int90 of LeNet fell from 161 to 137, of the MLP from 364 to 336
(benchmarks/dimension.py)."""

MOST_FLOAT = 2_000.0
"""Weights per coordinate up to which FLOAT_POWER was measured. With more, scales grow no further: ten times the usual
change of a weight in a step would only make the training diverge."""

STEPS = 100
"""Steps of direct training at most."""

SHARE = 0.3
"""Of the steps of a fit: those that the measurement takes at most."""

LEAST = 20
"""Steps of direct training at least."""

RATES = (3e-3, 1e-3, 3e-4, 1e-4)
"""Adam's steps that are tried for a network from scratch, until the loss falls."""

LARGER = (1e-2, 3e-2, 1e-1, 3e-1)
"""Adam's steps that are tried after the first of RATES, as long as the loss hardly falls and each is better."""

HARDLY = 0.8
"""Of the first loss: a loss that stays above it has hardly fallen."""

BETTER = 0.99
"""Of the loss with a smaller step: one at least as small is better."""

BASED_RATES = (1e-3, 3e-4, 1e-4, 3e-5)
"""The same on a base: the one is taken that ends with the lowest loss."""

FIRST = 8
"""Batches whose loss is compared before and after."""

PASS = 2_000
"""Batches at most in which it is looked for a gradient of what has had none."""

LOOKS = 40
"""Batches at least: a split of fewer is gone through several times."""

MAX_MASK = 1 << 10
"""Bytes at most that it may take to say which values no coordinate acts on: those of a mask of weights, which the
network applies itself, may move."""

SMOOTH = 1.45
"""Smoothness from which coordinates take the columns of lowest sequency."""

BLOCK = 10
"""Binary logarithm of the rows that smoothness is looked at in."""

SAMPLE = 1 << 22
"""Values that smoothness is looked at in, at most."""

SMALLEST = 1e-6
"""Of the largest change: smaller ones are taken for so much."""

Examples = Callable[[int], Iterator[Any]]
"""So many batches of training, in a fixed order; as many as there are for a negative number, each example once."""

Passes = Callable[[bool], Iterator[Iterable[Any]]]
"""The training split, gone through again and again, in batches: the same at each call. Whether all of it is wanted, or
only whole batches."""

LossOf = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Moves:
    """Of each parameter the change of its values, as root mean square by piece, in the order of the pieces that move.

    still: by tensor the (n,) values that no coordinate acts on: chosen ones that no training example moves, and all of
    a tensor that the forward pass does not read; unread: the names of these; rate: Adam's step; steps: of training, in
    all; seconds: that it took; smoothness: see `smoothness`, None where nothing was measured.
    """

    sizes: Mapping[str, tuple[float, ...]]
    still: Mapping[str, np.ndarray] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    smoothness: float | None = None

    @property
    def operator(self) -> str:
        """The exact operator whose columns suit the moves: of low sequency where they are smooth, else scattered."""
        return "hadamard" if self.smoothness is None or self.smoothness > SMOOTH else "scattered"

    def scales(self, starts: Starts, d: int, *, rounded: bool = True) -> dict[str, tuple[float, ...]]:
        """The scale of each piece that coordinates act on, for d coordinates, which become integers or not."""
        largest = max((x for sizes in self.sizes.values() for x in sizes), default=0.0)
        if not largest:
            return {}
        known = starts.of(self.still)
        if other := sorted(self.sizes.keys() - known.keys()):
            raise SubcompressError(
                f"moves are measured of the same network; those of {other[0]} are of another one: measure them again"
            )
        share = moving_weights(starts.layout, known) / d
        factor = (share / USUAL) ** POWER if rounded else (min(share, MOST_FLOAT) / USUAL) ** FLOAT_POWER
        return {
            name: tuple(factor * max(x, SMALLEST * largest) for x in sizes)
            for name, sizes in self.sizes.items()
            if known[name].moves
        }

    def check(self, starts: Starts) -> None:
        """Raise SubcompressError unless these are moves of the network that starts so."""
        known = starts.of(self.still)
        pieces = {n: sum(not p.fixed for p in s.pieces) if s.runs else 1 for n, s in known.items() if s.moves}
        counts = {name: len(sizes) for name, sizes in self.sizes.items()}
        if self.sizes and counts != pieces:
            name = next(n for n in {**pieces, **counts} if pieces.get(n) != counts.get(n))
            raise SubcompressError(
                f"sizes: {shown(name)}: expected {pieces.get(name, 0)} numbers, got {counts.get(name, 0)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run folder."""
        return {
            "sizes": {name: list(sizes) for name, sizes in self.sizes.items()},
            "still": {name: [len(m), _packed(m)] for name, m in self.still.items()},
            "unread": list(self.unread),
            "rate": self.rate,
            "steps": self.steps,
            "seconds": self.seconds,
            "smoothness": self.smoothness,
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Moves:
        """What `to_json` gave. Raises ValueError for a mask that is not one."""
        return cls(
            {name: tuple(sizes) for name, sizes in held["sizes"].items()},
            {name: _unpacked(n, text) for name, (n, text) in held["still"].items()},
            tuple(held["unread"]),
            held["rate"],
            held["steps"],
            held["seconds"],
            held.get("smoothness"),
        )


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()


def _unpacked(n: int, text: str) -> np.ndarray:
    size = -(-n // 8)
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, ValueError, OverflowError) as e:
        raise ValueError(f"not a mask: {e}") from e
    if len(packed) != size:
        raise ValueError(f"a mask of {n} values is {size} bytes, not {len(packed)}")
    return np.unpackbits(np.frombuffer(packed, np.uint8))[:n].astype(bool)


def examples_of(passes: Passes) -> Examples:
    """Batches out of passes. Raises SubcompressError, when they are asked for, where a pass is empty."""

    def examples(steps: int) -> Iterator[Any]:
        count = 0
        for batches in passes(steps < 0):
            before = count
            for batch in batches:
                if count == steps:
                    return
                count += 1
                yield batch
            if steps < 0:
                return
            if count == before:
                raise SubcompressError(
                    "batches are gone through several times; these are empty: give a list or a loader"
                )

    return examples


def measured(
    module: nn.Module,
    starts: Starts,
    examples: Examples,
    loss_of: LossOf,
    *,
    seed: int = 0,
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
    based: bool = False,
) -> Moves:
    """Train a copy of the module directly for a few steps of Adam and see how far each piece moves.

    module: with its starting values; examples: see `Examples`; loss_of: of a module and a batch; seed: of dropout and
    the like; rates: Adam's steps that are tried, largest first, until the loss falls; based: until it falls less, with
    half of the steps each, and take the one of the lowest loss. Raises SubcompressError where a batch does not go
    through the model or the loss.
    """
    began = time.perf_counter()
    acting = {name for name, start in starts.of().items() if start.moves}
    count = max(LEAST, steps // 2) if based else steps
    best, taken = _best_trial(module, acting, lambda: examples(count), loss_of, seed, rates, based)
    seed_everything(seed, 1)
    still, unread, swept = _swept(best, starts, examples, loss_of)
    still |= {name: np.ones(best.reals(name), bool) for name in unread}
    if not best.falls:  # how far tensors move says nothing
        return Moves({}, still, unread, 0.0, taken + swept, time.perf_counter() - began)
    moving = [name for name, start in starts.of(still).items() if start.moves]
    sizes = {name: best.sizes(name, starts, still) for name in moving}
    smooth = smoothness(best.change(name) for name in moving)
    return Moves(sizes, still, unread, best.rate, taken + swept, time.perf_counter() - began, smooth)


def smoothness(changes: Iterable[np.ndarray]) -> float:
    """How much more of the changes of tensors, in the order of the layout, lies in the quarter of lowest sequency of a
    Hadamard transform than of independent numbers: above 1.6 for networks on images, whose first weights read smooth
    inputs, below 1.3 for others (benchmarks/moves.py)."""
    rows: list[np.ndarray] = []
    for change in changes:
        size = _rms(change)
        rows.append((change / size if size else change).astype(np.float32)[:SAMPLE])
    x = np.concatenate(rows)[:SAMPLE]
    m = 1 << max(0, min(BLOCK, len(x).bit_length() - 1))
    y = walsh.transform(x[: len(x) // m * m].reshape(-1, m)).astype(np.float64)
    energy = np.square(y).sum(0)
    low = walsh.order(m.bit_length() - 1)[: max(1, m // 4)]
    return float(energy[low].sum() / max(float(energy.sum()), 1e-300) * m / len(low))


def _best_trial(
    module: nn.Module,
    acting: set[str],
    batches: Callable[[], Iterator[Any]],
    loss_of: LossOf,
    seed: int,
    rates: Sequence[float],
    based: bool,
) -> tuple[_Trial, int]:
    """The trial whose step size counts, and the steps of all trials. Only one is held beside the one under way."""
    best: _Trial | None = None
    taken, queue, larger = 0, list(rates), list(() if based else LARGER)
    while queue:
        trial = _Trial(module, queue.pop(0), acting)
        seed_everything(seed, 0)
        trial.run(batches(), loss_of)
        taken += trial.steps
        better = best is None or trial.last < BETTER * best.last
        climbs = trial.rate >= rates[0] and trial.last > HARDLY * trial.first and better and bool(larger)
        if best is None or (trial.falls, -trial.last) > (best.falls, -best.last):
            best = trial
        if based:
            if best.falls and best is not trial:  # smaller ones are worse still
                break
            continue
        if trial.falls:
            queue = [larger.pop(0)] if climbs else []
        elif best.falls:
            break
    assert best is not None, "there is a rate at least"
    return best, taken


class _Trial:
    """A copy of the module, trained with one step size. acting: the parameters that coordinates act on."""

    def __init__(self, module: nn.Module, rate: float, acting: set[str]) -> None:
        self.module, self.rate = copy.deepcopy(module), rate
        named = dict(module.named_parameters(remove_duplicate=False))
        meant = {id(named[n]) for n in acting}
        self.before = {n: p for n, p in named.items() if id(p) in meant}
        self.after = {n: p for n, p in self.module.named_parameters(remove_duplicate=False) if n in self.before}
        trained = {id(p) for p in self.after.values()}
        for p in self.module.parameters():
            p.requires_grad_(id(p) in trained)
        self._before: list[float] = []
        self.last = math.inf
        self.steps = 0
        self.read: set[str] = set()

    def run(self, batches: Iterator[Any], loss_of: LossOf) -> None:
        """Train on the batches; ends early where the loss is not finite."""
        self.module.train()
        first: list[Any] = []
        optimizer = Adam(list({id(p): p for p in self.after.values()}.values()), lr=self.rate)
        for batch in batches:
            loss = loss_of(self.module, batch)
            value = float(loss.detach())
            if len(first) < FIRST:
                first.append(batch)
                self._before.append(value)
            if not math.isfinite(value):
                return
            if not loss.requires_grad:  # such as of an expert that is not trained
                continue
            self.backward(loss)
            optimizer.step()
            self.steps += 1
        # Of the same batches as before: of others it differs by more than a few steps change.
        self.last = float(np.mean([float(loss_of(self.module, batch).detach()) for batch in first]))
        self.module.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, dense ones; notes which parameters have one."""
        self.module.zero_grad()
        loss.backward()
        for name, p in self.after.items():
            if p.grad is not None:
                self.read.add(name)
                p.grad = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad

    @property
    def first(self) -> float:
        """The loss of the first batches, before they were learned from."""
        return float(np.mean(self._before))

    @property
    def falls(self) -> bool:
        """Whether the loss is lower at the end than in the first steps."""
        return math.isfinite(self.last) and self.last < self.first and bool(self.read)

    def unread(self) -> tuple[str, ...]:
        """The parameters that no forward pass has read, by their first names; none where no loss had a gradient."""
        if not self.read:
            return ()
        seen: dict[int, str] = {}
        for name, p in self.after.items():
            seen.setdefault(id(p), name)
        read = {id(p) for n, p in self.after.items() if n in self.read}
        return tuple(name for key, name in seen.items() if key not in read)

    def reals(self, name: str) -> int:
        """Real numbers of a parameter."""
        p = self.after[name]
        return p.numel() * (2 if p.is_complex() else 1)

    def change(self, name: str) -> np.ndarray:
        """How far each real number of a parameter moved, (n,) float64."""
        return _flat(self.after[name].detach() - self.before[name].detach()).double().numpy()

    def sizes(self, name: str, starts: Starts, still: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """The root mean square change of each piece that coordinates act on."""
        start, change = starts.of(still)[name], self.change(name)
        if not start.runs:
            return (_rms(change),)
        items = starts.items(name, still)
        return tuple(_rms(change[items == i]) for i, piece in enumerate(start.pieces) if not piece.fixed)

    @contextmanager
    def disturbed(self, noise: Mapping[str, float]) -> Iterator[None]:
        """Every parameter moved at random, by so much, while the block lasts."""
        parameters = {id(p): (p, noise[n]) for n, p in self.after.items()}.values()
        held = [p.detach().clone() for p, _ in parameters]
        with torch.no_grad():
            for p, size in parameters:
                p.add_(size * torch.randn_like(p))
        try:
            yield
        finally:
            with torch.no_grad():
                for (p, _), value in zip(parameters, held, strict=True):
                    p.copy_(value)


def _flat(x: Tensor) -> Tensor:
    """Its real numbers in a row, on the host."""
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).cpu()


def _rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.square(x).mean())) if len(x) else 0.0


def _swept(
    trial: _Trial, starts: Starts, examples: Examples, loss_of: LossOf
) -> tuple[dict[str, np.ndarray], tuple[str, ...], int]:
    """Chosen values that no training example moves (padding rows, masked weights), by tensor, (n,); the parameters that
    no forward pass reads; and how many batches were looked at: all, up to PASS, where there are such.

    Each batch is seen under weights that are moved at random: a unit that is dead under some is not under all.
    """
    candidates = {}
    for name, values in starts.values.items():
        if name in trial.read and (~values.random).any():
            mask = ~values.random & (trial.change(name) == 0)
            if mask.any():
                candidates[name] = mask
    if not trial.read or not (candidates or trial.unread()):
        return {}, (), 0
    noise = {n: max(_rms(trial.change(n)), _deviation(p)) for n, p in trial.after.items()}
    count = 0
    for batch in _looks(examples):
        count += 1
        trial.module.train(count % 2 == 1)  # what is read in evaluation is read too
        with trial.disturbed({n: x * (1 + count % 4) for n, x in noise.items()}):
            loss = loss_of(trial.module, batch)
            if not loss.requires_grad or not math.isfinite(float(loss.detach())):
                continue
            trial.backward(loss)
        for name in list(candidates):
            if (grad := trial.after[name].grad) is not None:
                candidates[name] &= _flat(grad).float().numpy() == 0
            if not candidates[name].any():
                del candidates[name]
        if not candidates and not trial.unread():
            break
    cheap = {name: mask for name, mask in candidates.items() if _mask_cost(mask) <= MAX_MASK}
    return cheap, trial.unread(), count


def _looks(examples: Examples) -> Iterator[Any]:
    """Every batch, up to PASS; those of a small split several times, under other weights each."""
    count = 0
    while True:
        before = count
        for batch in examples(-1):
            if count == PASS:
                return
            count += 1
            yield batch
        if count >= LOOKS or count == before:
            return


def _mask_cost(mask: np.ndarray) -> float:
    """About how many bytes it takes to say which values are meant."""
    runs = runs_of(mask.astype(np.int64))
    return math.inf if runs is None else runs_cost(runs)


def _deviation(p: Tensor) -> float:
    """The standard deviation of a parameter's values."""
    x = _flat(p.detach()).double()
    return float(x.std()) if len(x) > 1 else 0.0


def steps_of(total: int) -> int:
    """Steps of the measurement for a fit of so many."""
    return min(STEPS, max(LEAST, int(SHARE * total)))


__all__ = ["Moves"]
