"""What a factory chooses and what it draws: the network built several times, under different seeds.

Values that are equal in all builds were chosen, and start exactly there; those that differ are random, with a center
and a deviation that are measured. That needs no threshold, and tells value by value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.errors import SubcompressError, one_line
from subcompress.layout import array_of
from subcompress.seeds import seed_everything

BUILDS = 3
"""Builds that are compared."""

CENTER_BUILDS = 6
"""Builds that are compared where some random values seem to have centers of their own: of a distribution with heavy
tails a few of many values are far off three times by chance."""

MOST_BUILDS = 8
"""Builds at most, where every further one shows that fewer values were chosen: numbers of few different values are
equal by chance."""

Build = Callable[[int], nn.Module]
"""The network under that seed."""


@dataclass(frozen=True)
class Seen:
    """What builds say of a tensor, by real number. random: (n,) whether it differs between builds; mean: (n,) over the
    builds; variance: (n,) between them; builds: how many there were."""

    random: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    builds: int


@dataclass(frozen=True)
class Observed:
    """By parameter what builds say; notes: what a person should know, a line each."""

    tensors: dict[str, Seen]
    notes: tuple[str, ...] = ()


def built(model: Any, seed: int) -> tuple[nn.Module, Build | None]:
    """The network, and how to build it again: None where `model` is an instance. A factory takes no argument and draws
    from the seeds that are set before it is called. Raises SubcompressError for anything else."""
    if isinstance(model, nn.Module):
        return model, None
    if not callable(model):
        raise SubcompressError(f"fit takes an nn.Module, or a factory of one; given {type(model).__name__}")

    def build(seed: int) -> nn.Module:
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                seed_everything(seed, 0)
                found = model()
        except SubcompressError:
            raise
        except Exception as e:
            raise SubcompressError(f"the model's factory raises {type(e).__name__}: {one_line(e)}") from e
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        if not isinstance(found, nn.Module):
            raise SubcompressError(f"a model factory returns an nn.Module; it returned {type(found).__name__}")
        return found

    return build(seed), build


def observe(model: nn.Module, build: Build, seed: int, names: set[str]) -> Observed:
    """Compare `model`, which is the build under `seed`, with others, in the parameters of these names.

    Raises SubcompressError where a build fails, or has other tensors.
    """
    sums = {n: _Sums(_reals(p)) for n, p in _parameters(model) if n in names and p.numel()}
    if not sums:
        return Observed({})
    notes = []
    if not _same(model, build(seed), names):
        notes.append(
            "warning: the factory gives other weights under the same seed (it reads a clock, or a generator of its "
            "own): an interrupted fit cannot go on, and another process starts elsewhere"
        )
    shrunk: set[str] = set()
    for count in range(1, MOST_BUILDS):
        if count >= BUILDS and not shrunk and (count >= CENTER_BUILDS or not any(s.centered for s in sums.values())):
            break
        other = dict(_parameters(_checked(model, build((seed + count) % (1 << 63)))))
        shrunk = {name for name, s in sums.items() if s.add(_reals(other[name]))}
    for name in shrunk:  # equal by chance so far
        sums[name].random[:] = True
    return Observed({name: s.seen() for name, s in sums.items()}, tuple(notes))


class _Sums:
    """Builds of one tensor, added up."""

    def __init__(self, first: np.ndarray) -> None:
        self.first, self.builds = first, 1
        self.random = np.zeros(first.shape, bool)
        self.total, self.squares = np.zeros_like(first), np.zeros_like(first)

    def add(self, other: np.ndarray) -> bool:
        """One more build; whether, with three or more, it shows that fewer values are chosen than it seemed."""
        difference = other - self.first
        differs = other != self.first
        fewer = bool((differs & ~self.random).any())
        self.random |= differs
        self.total += difference
        self.squares += difference * difference
        self.builds += 1
        return fewer and self.builds > 2

    @property
    def centered(self) -> bool:
        """Whether some random values seem to have centers of their own."""
        return bool(self.random.any()) and isinstance(center_and_deviation(self.seen(), self.random)[0], np.ndarray)

    def seen(self) -> Seen:
        mean = self.total / self.builds
        variance = np.maximum(self.squares / self.builds - mean * mean, 0) * self.builds / (self.builds - 1)
        return Seen(self.random, self.first + mean, variance, self.builds)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return model.named_parameters(remove_duplicate=False)


def _reals(p: Tensor) -> np.ndarray:
    """The real numbers of a tensor in a row, float32 (float64 where it is)."""
    p = p.detach()
    flat = (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).cpu()
    if not flat.is_floating_point():
        return flat.double().numpy()
    return array_of(flat if flat.dtype == torch.float64 else flat.float())


def _same(model: nn.Module, again: nn.Module, names: set[str]) -> bool:
    others = dict(_parameters(_checked(model, again)))
    mine = {n: p for n, p in _parameters(model) if n in names}
    return all(np.array_equal(_reals(p), _reals(others[n]), equal_nan=True) for n, p in mine.items())


def _checked(model: nn.Module, other: nn.Module) -> nn.Module:
    """Another build. Raises SubcompressError where it has other parameters."""
    if not isinstance(other, nn.Module):
        raise SubcompressError(f"a model factory returns an nn.Module; it returned {type(other).__name__}")
    shapes, others = ({n: tuple(p.shape) for n, p in _parameters(m)} for m in (model, other))
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            raise SubcompressError(
                f"a factory builds one network under every seed; {name} is {_said(shapes, name)} in one build and "
                f"{_said(others, name)} in another: make its size depend on nothing random"
            )
    return other


def _said(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"


def center_and_deviation(seen: Seen, which: np.ndarray) -> tuple[float | np.ndarray, float]:
    """The center of random values and their standard deviation around it, over all builds.

    which: (n,) the values that are meant, all random. The center is one number, or, where some values have centers of
    their own that chance does not explain, (values of `which`,) float32.
    """
    mean, variance = seen.mean[which].astype(np.float64), seen.variance[which].astype(np.float64)
    n, builds = len(mean), seen.builds
    within = math.sqrt(float(variance.mean()))
    if n > 2 and within:
        middle = float(np.median(mean))
        # Of n normal values the largest is about sqrt(2 ln n) deviations off; a value that varies more errs by more.
        far = (math.sqrt(2 * math.log(n)) + 3) / math.sqrt(builds)
        own = np.abs(mean - middle) > far * np.maximum(within, np.sqrt(variance))
        if own.any():
            step = 2.0 ** math.ceil(math.log2(2 * within))
            common = _snapped(middle, within / math.sqrt(builds * n))
            return np.where(own, np.round(mean / step) * step, common).astype(np.float32), within
    center = _snapped(float(mean.mean()), within / math.sqrt(builds * n))
    square = float(variance.mean()) * (builds - 1) / builds + float(np.square(mean - center).mean())
    return center, math.sqrt(square)


def _snapped(center: float, error: float) -> float:
    """The center, zero where it is within chance of it."""
    return 0.0 if abs(center) < 4 * error else float(np.float32(center))
