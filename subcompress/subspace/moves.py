"""Measures how far each tensor moves when the network is trained directly, and sets the scales of the subspace by it.

theta = start + scale * P z. A tensor that must move far for the loss to fall needs a large scale, whatever the size of
its start. Examples are spectral weights, layer scales and biases that start near zero, and a last layer that starts
small. A few steps of Adam on all weights show how far each tensor moves. The scale of a piece is the root mean square
of its change, times a factor that depends on D / d and is the same for all pieces (benchmarks/moves.py compares rules).
"""

from __future__ import annotations

import base64
import math
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.data import parts
from subcompress.errors import SubcompressError, shown
from subcompress.format.describing import runs_cost, runs_of
from subcompress.operators import walsh
from subcompress.operators.forms import SEEDED_SLOTS, Seeded
from subcompress.subspace.copying import copied
from subcompress.subspace.low_rank import between, factored
from subcompress.subspace.masters import Masters
from subcompress.subspace.seeds import seed_everything
from subcompress.subspace.starts import Start, Starts, moving_weights
from subcompress.support.stepping import Adam

USUAL = 30.0
"""Number of weights per coordinate, D / d, at which the scale of a piece equals the root mean square of its change. A
step of Adam moves each coordinate by the same amount. The more weights a coordinate moves, the smaller the part of the
move that lowers the loss."""

POWER = 1 / 8
"""Exponent with which scales grow with the number of weights per coordinate. The results for exponents of 0 and 1/4
differ from it by no more than the noise (benchmarks/results/moves.md)."""

FLOAT_POWER = 1 / 2
"""The same for coordinates that are never rounded: d_int90 of LeNet fell from 161 to 137, of the MLP from 364 to 336
(benchmarks/dimension.py)."""

MOST_FLOAT = 2_000.0
"""Weights per coordinate up to which FLOAT_POWER was measured. With more, scales grow no further: ten times the usual
change of a weight in a step would only make the training diverge."""

STEPS = 100
"""The most steps of direct training."""

SHARE = 0.3
"""The measurement takes at most this share of the steps of a fit."""

LEAST, LEAST_BASED = 20, 10
"""The fewest steps of direct training with each learning rate: from scratch, and on a base. On a base, all learning
rates are tried, and one step may take seconds."""

RATES = (3e-3, 1e-3, 3e-4, 1e-4)
"""Learning rates of Adam that are tried for a network from scratch, in this order, until the loss falls."""

LARGER = (1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates that are tried after the first of RATES, as long as the loss hardly falls and each is better."""

HARDLY = 0.8
"""A loss that stays above this share of the first loss has hardly fallen."""

BETTER = 0.99
"""A trial is better than the best one so far if its loss is below this share of the best one's."""

BASED_RATES = (1e-3, 3e-4, 1e-4, 3e-5)
"""Learning rates of Adam that are tried on a base. The one that ends with the lowest loss is used."""

FIRST = 8
"""Number of batches whose loss is compared before and after."""

PASS = 2_000
"""The most batches in which `_swept` looks for gradients of values that had none so far."""

LOOKS = 40
"""The fewest such batches: a smaller split is passed through several times."""

MAX_MASK = 1 << 10
"""The most bytes for a mask of values that no coordinate acts on. If a mask takes more, such as one that the network
itself applies to its weights, these values may move."""

SMOOTH = 1.45
"""Smoothness above which coordinates use the columns of lowest sequency."""

BLOCK = 10
"""Binary logarithm of the number of rows in which smoothness is measured."""

SAMPLE = 1 << 22
"""The most values in which smoothness is measured."""

SMALLEST = 1e-6
"""Changes below this share of the largest change count as this share."""

Examples = Callable[[int], Iterator[Any]]
"""Returns the given number of training batches, in a fixed order. For a negative number, each example once."""

Passes = Callable[[bool], Iterator[Iterable[Any]]]
"""Yields passes over the training split without end, each in batches; the same ones at each call. The argument says
whether a pass holds all examples, or only whole batches."""

LossOf = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Moves:
    """How far the values of each parameter moved in direct training.

    sizes: for each parameter, the root mean square change of each of its pieces that move, in order. still: for each
    tensor, a mask (n,) of the values that no coordinate acts on: constants that no training example moves, and all
    values of a tensor that the forward pass does not read. unread: the names of these unread tensors. rate: the
    learning rate of Adam. steps: the number of training steps, over all trials. seconds: how long they took.
    smoothness: see `smoothness`; None if nothing was measured.
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
        """The exact operator that suits the moves: `hadamard` (low sequency) if they are smooth, else `scattered`."""
        return "hadamard" if self.smoothness is None or self.smoothness > SMOOTH else "scattered"

    def scales(self, starts: Starts, d: int, *, rounded: bool = True) -> dict[str, tuple[float, ...]]:
        """The scale of each piece that coordinates act on, for d coordinates.

        rounded: whether the coordinates are rounded to integers.
        """
        largest = max((x for sizes in self.sizes.values() for x in sizes), default=0.0)
        if not largest:
            return {}
        known = starts.of(self.still)
        if other := sorted(self.sizes.keys() - known.keys()):
            raise SubcompressError(
                f"the moves were measured on another network, which has {other[0]}: measure them again on this one"
            )
        share = moving_weights(starts.layout, known) / d
        factor = (share / USUAL) ** POWER if rounded else (min(share, MOST_FLOAT) / USUAL) ** FLOAT_POWER
        return {
            name: tuple(factor * max(x, SMALLEST * largest) for x in sizes)
            for name, sizes in self.sizes.items()
            if known[name].moves
        }

    def check(self, starts: Starts) -> None:
        """Raise SubcompressError unless these moves belong to the network with these starts."""
        known = starts.of(self.still)
        pieces = {n: sum(not p.fixed for p in s.pieces) if s.runs or s.rank else 1 for n, s in known.items() if s.moves}
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
    """Turn passes into batches. The result raises SubcompressError if a pass is empty."""

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
                    "no batches were given, or they can be iterated only once: give a list or a DataLoader"
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
    still: Collection[str] = (),
) -> Moves:
    """Train a copy of the module directly for a few steps of Adam and see how far each piece moves.

    module: the network with its starting values. examples: see `Examples`. loss_of: the loss of a module on a batch.
    seed: the seed of dropout and other random layers. rates: learning rates of Adam to try, largest first, until the
    loss falls. based: try them until the loss falls less than before, with half of the steps each, and use the one with
    the lowest loss. still: parameters that do not train, which the copies share with the module. Raises
    SubcompressError if the model or the loss cannot process a batch.
    """
    began = time.perf_counter()
    acting = {name: start for name, start in starts.of().items() if start.moves}
    count = steps_of_each(steps) if based else steps
    best, taken = _best_trial(
        lambda rate: _Trial(module, rate, acting, seed, still), lambda: examples(count), loss_of, seed, rates, based
    )
    seed_everything(seed, 1)
    still, unread, swept = _swept(best, starts, examples, loss_of)
    still |= {name: np.ones(best.reals(name), bool) for name in unread}
    if not best.falls:  # then the distances are meaningless
        return Moves({}, still, unread, 0.0, taken + swept, time.perf_counter() - began)
    moving = [name for name, start in starts.of(still).items() if start.moves]
    sizes = {name: best.sizes(name, starts, still) for name in moving}
    smooth = smoothness(change for name in moving for change in best.changes(name))
    return Moves(sizes, still, unread, best.rate, taken + swept, time.perf_counter() - began, smooth)


def smoothness(changes: Iterable[np.ndarray]) -> float:
    """Measure how smooth the changes of tensors are, in the order of the layout.

    It is the energy in the quarter of lowest sequency of a Hadamard transform, divided by that of independent numbers.
    It is above 1.6 for networks on images, whose first weights read smooth inputs, and below 1.3 for others
    (benchmarks/moves.py).
    """
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
    begun: Callable[[float], _Trial],
    batches: Callable[[], Iterator[Any]],
    loss_of: LossOf,
    seed: int,
    rates: Sequence[float],
    based: bool,
) -> tuple[_Trial, int]:
    """Return the best trial and the number of steps of all trials. At most two trials are in memory at a time."""
    best: _Trial | None = None
    taken, queue, larger = 0, list(rates), list(() if based else LARGER)
    while queue:
        trial = begun(queue.pop(0))
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


class _Factors:
    """The low-rank factors of a matrix in a trial, and the places in the module that use the matrix."""

    def __init__(self, module: nn.Module, name: str, start: Start, drawn: torch.Generator) -> None:
        parameter = module.get_parameter(name)
        self.base, self.places = parameter.detach(), list[tuple[nn.Module, str]]()
        for owner in module.modules():
            for leaf in [n for n, p in owner._parameters.items() if p is parameter]:
                del owner._parameters[leaf]
                self.places.append((owner, leaf))
        self.directions: tuple[Tensor, Tensor] | None = None
        shapes = [(start.rank, -1), (-1, start.rank)]
        if start.directions is not None:
            u, v = start.directions
            self.directions, shapes = (u.to(self.base.device), v.to(self.base.device)), [(start.rank, start.rank)]
        self.sides: list[Tensor] = []
        for piece, shape in zip(start.pieces, shapes, strict=True):
            deviation = piece.form.scale * math.sqrt(SEEDED_SLOTS) if isinstance(piece.form, Seeded) else 0.0
            values = deviation * torch.randn(piece.reals, generator=drawn)
            self.sides.append(values.view(shape).to(self.base.device).requires_grad_())

    def put(self) -> None:
        """Give the module the matrix that the factors currently make."""
        if self.directions is not None:
            weight = between(self.base, self.sides[0], self.directions, self.base.dtype)
        else:
            right, left = self.sides
            weight = factored(self.base, left, right, self.base.dtype)
        for owner, leaf in self.places:
            owner._buffers[leaf] = weight


class _Trial:
    """A copy of the module, trained with one learning rate.

    acting: the starts of the parameters that coordinates act on. still: parameters that the copy shares with the
    module. before, after: the values of the trained tensors by name. The name of a factor is that of its matrix, a zero
    character and its number.
    """

    def __init__(
        self, module: nn.Module, rate: float, acting: Mapping[str, Start], seed: int = 0, still: Collection[str] = ()
    ) -> None:
        changing = {n for n, start in acting.items() if not start.rank}
        self.module, self.rate = copied(module, shared={*still, *acting} - changing), rate
        drawn = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
        self.factors = {n: _Factors(self.module, n, s, drawn) for n, s in acting.items() if s.rank}
        named = dict(module.named_parameters(remove_duplicate=False))
        meant = {id(named[n]) for n in acting if n not in self.factors}
        self.before: dict[str, Tensor] = {n: p for n, p in named.items() if id(p) in meant}
        self.after: dict[str, Tensor] = {
            n: p for n, p in self.module.named_parameters(remove_duplicate=False) if n in self.before
        }
        for name, factors in self.factors.items():
            for k, side in enumerate(factors.sides):
                self.after[f"{name}\0{k}"], self.before[f"{name}\0{k}"] = side, side.detach().clone()
        trained = {id(p) for p in self.after.values()}
        for p in self.module.parameters():
            p.requires_grad_(id(p) in trained)
        self.masters = Masters({id(p): p for p in self.after.values()}.values())
        self._before: list[float] = []
        self.last = math.inf
        self.steps = 0
        self.read: set[str] = set()

    def run(self, batches: Iterator[Any], loss_of: LossOf) -> None:
        """Train on the batches. End early if the loss is not finite."""
        self.module.train()
        first: list[Any] = []
        optimizer = Adam(self.masters.wide, lr=self.rate)
        for batch in batches:
            value, depends = self.backward(batch, loss_of)
            if len(first) < FIRST:
                first.append(batch)
                self._before.append(value)
            if not math.isfinite(value):
                return
            if not depends:  # such as the loss of an expert that is not trained
                continue
            self.masters.step(optimizer)
            self.steps += 1
        # On the same batches as before: other batches differ by more than a few steps of training change.
        self.last = float(np.mean([parts.value(batch, partial(self.loss, loss_of)) for batch in first]))
        self._forget_gradients()

    def loss(self, loss_of: LossOf, batch: Any) -> Tensor:
        """The loss of a batch, or of a part of one, with the current values."""
        for factors in self.factors.values():
            factors.put()
        return loss_of(self.module, batch)

    def _forget_gradients(self) -> None:
        for p in self.after.values():
            p.grad = None

    def backward(self, batch: Any, loss_of: LossOf) -> tuple[float, bool]:
        """Compute the gradients of a batch and note which parameters have one.

        Returns the loss, and whether it depends on any parameter. The gradients are left in the parameters, as dense
        tensors.
        """
        self._forget_gradients()
        loss, depends = parts.backward(batch, partial(self.loss, loss_of))
        for name, p in self.after.items():
            if p.grad is not None:
                self.read.add(_owner(name))
                p.grad = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad
        return float(loss), depends

    @property
    def first(self) -> float:
        """The mean loss of the first batches, each before the step on it."""
        return float(np.mean(self._before))

    @property
    def falls(self) -> bool:
        """Whether the loss is lower at the end than in the first steps."""
        return math.isfinite(self.last) and self.last < self.first and bool(self.read)

    def unread(self) -> tuple[str, ...]:
        """The parameters that no forward pass has read, by their first names. Empty if no loss had a gradient."""
        if not self.read:
            return ()
        seen: dict[int, str] = {}
        for name, p in self.after.items():
            seen.setdefault(id(p), _owner(name))
        read = {id(p) for n, p in self.after.items() if _owner(n) in self.read}
        return tuple(dict.fromkeys(name for key, name in seen.items() if key not in read))

    def reals(self, name: str) -> int:
        """Number of real numbers in a parameter."""
        p = self.factors[name].base if name in self.factors else self.after[name]
        return p.numel() * (2 if p.is_complex() else 1)

    def change(self, name: str) -> np.ndarray:
        """How far each real number of a parameter moved, (n,) float64."""
        before = self.before[name].detach()
        after = self.masters.of(self.after[name]).detach()
        return _flat(after - before.to(after.dtype)).double().numpy()

    def changes(self, name: str) -> list[np.ndarray]:
        """The `change` of a parameter, or of each factor of a matrix."""
        sides = range(len(self.factors[name].sides)) if name in self.factors else ()
        return [self.change(f"{name}\0{k}") for k in sides] or [self.change(name)]

    def sizes(self, name: str, starts: Starts, still: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """The root mean square change of each piece that coordinates act on."""
        start, changes = starts.of(still)[name], self.changes(name)
        if not start.runs:
            return tuple(map(_rms, changes))
        (change,) = changes
        items = starts.items(name, still)
        return tuple(_rms(change[items == i]) for i, piece in enumerate(start.pieces) if not piece.fixed)

    @contextmanager
    def disturbed(self, noise: Mapping[str, float]) -> Iterator[None]:
        """Add random noise to every parameter while the block lasts. noise: its size by parameter."""
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


def _owner(name: str) -> str:
    """The name of a factor's matrix, or the name itself if it is no factor."""
    return name.partition("\0")[0]


def _flat(x: Tensor) -> Tensor:
    """The real numbers of a tensor as one row on the host."""
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).cpu()


def _rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.square(x).mean())) if len(x) else 0.0


def _swept(
    trial: _Trial, starts: Starts, examples: Examples, loss_of: LossOf
) -> tuple[dict[str, np.ndarray], tuple[str, ...], int]:
    """Find values that training does not move.

    Returns masks (n,) by tensor of the constants that no training example moves (padding rows, masked weights); the
    parameters that no forward pass reads; and the number of batches that were used. If there are candidates, these are
    all batches up to PASS.

    The weights are disturbed at random for each batch: a unit that is dead with some weights is not dead with all.
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
        trial.module.train(count % 2 == 1)  # a tensor that only evaluation reads counts as read
        with trial.disturbed({n: x * (1 + count % 4) for n, x in noise.items()}):
            loss, depends = trial.backward(batch, loss_of)
            if not depends or not math.isfinite(loss):
                continue
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
    """Yield every batch, up to PASS. The batches of a small split come several times."""
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
    """Estimate the bytes that a mask takes in a file."""
    runs = runs_of(mask.astype(np.int64))
    return math.inf if runs is None else runs_cost(runs)


def _deviation(p: Tensor) -> float:
    """The standard deviation of a parameter's values."""
    x = _flat(p.detach()).double()
    return float(x.std()) if len(x) > 1 else 0.0


def steps_of_each(steps: int) -> int:
    """The number of steps of each trial on a base."""
    return max(LEAST_BASED, steps // 2)


def steps_of(total: int) -> int:
    """The number of steps of the measurement, for a fit of `total` steps."""
    return min(STEPS, max(LEAST, int(SHARE * total)))


__all__ = ["Moves"]
