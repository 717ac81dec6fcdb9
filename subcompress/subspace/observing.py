"""What a factory chooses and what it draws: the network built several times, under different seeds.

Values that are equal in all builds were chosen, and start exactly there; those that differ are random, with centers
and deviations that are measured (`subcompress.subspace.spread`). That tells value by value, and needs no threshold.
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
from subcompress.subspace.copying import check_hooks, own_memory
from subcompress.subspace.hidden import check_sharing
from subcompress.subspace.seeds import seed_everything
from subcompress.subspace.spread import Drawn, Moments, alike, grouped, grouped_parts
from subcompress.subspace.unwrapping import unwrapped, wrapping_note
from subcompress.tensors.layout import array_of

BUILDS = 3
"""The number of builds that are compared."""

CENTER_BUILDS = 6
"""Builds that are compared where some random values seem to have centers of their own: of a distribution with heavy
tails a few of many values are far off three times by chance."""

MOST_BUILDS = 8
"""Builds at most, where every further one shows that fewer values were chosen: numbers of few different values are
equal by chance."""

Build = Callable[[int], nn.Module]
"""Returns the network under that seed."""


@dataclass(frozen=True)
class Seen:
    """What builds say of a tensor, by real number. group: (n,) uint8, 0 for values that are equal in all builds, 1 + i
    for random ones of group i; drawn: those groups."""

    group: np.ndarray
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class Observed:
    """What the builds show about each parameter; notes: lines for the user."""

    tensors: dict[str, Seen]
    notes: tuple[str, ...] = ()


def built(model: Any, seed: int, note: Callable[[str], None] | None = None) -> tuple[nn.Module, Build | None]:
    """The network, and how to build it again: None if `model` is an instance. A factory takes no argument and draws
    from the seeds that are set before it is called. What torch wraps around a network is taken off (`unwrapped`), of
    which `note` is told.

    Raises SubcompressError for anything else, and for tensors that share memory (`check_sharing`): a copy does not, so
    that nothing later could tell."""

    def taken(module: nn.Module) -> nn.Module:
        if note is not None and (line := wrapping_note(module)):
            note(line)
        module = unwrapped(module)
        check_hooks(module)
        check_one_device(module)
        check_sharing(module)
        return module

    if isinstance(model, nn.Module):
        return taken(model), None
    if not callable(model):
        raise SubcompressError(f"fit takes an nn.Module, or a factory of one; got {type(model).__name__}")

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
            raise SubcompressError(f"a model factory must return an nn.Module; it returned {type(found).__name__}")
        return found

    return own_memory(taken(build(seed))), lambda seed: own_memory(unwrapped(build(seed)))


def check_one_device(module: nn.Module) -> None:
    """Raise SubcompressError for a network that transformers has spread over several devices."""
    for child in module.modules():
        places = getattr(child, "hf_device_map", None)
        if isinstance(places, dict) and len(found := sorted({str(place) for place in places.values()})) > 1:
            raise SubcompressError(
                f"the network is spread over several devices, {', '.join(found)}: load it without device_map, "
                "in bfloat16 if it is too large, or train with --accumulate and --checkpointing"
            )


def observe(model: nn.Module, build: Build, seed: int, names: set[str]) -> Observed:
    """Compare `model`, which is the build under `seed`, with others, in the parameters of these names.

    Raises SubcompressError if a build fails, is the same object as another, has other tensors or such as are not
    finite.
    """
    mine = {n: p for n, p in _parameters(model) if n in names and p.numel()}
    if not mine:
        return Observed({})
    notes = () if _same(model, build(seed), mine) else (OTHER_WEIGHTS,)

    def another(number: int) -> dict[str, Tensor]:
        found = _checked(model, build((seed + number) % (1 << 63)), mine)
        return {n: p for n, p in _parameters(found) if n in mine}

    held = [another(number) for number in range(1, BUILDS)]
    pending: dict[str, _Sums] = {}
    seen: dict[str, Seen] = {}
    for name, p in mine.items():  # one tensor at a time: the builds of others are held, and no more
        sums = _Sums(name, p)
        for tensors in held:
            sums.add(tensors.pop(name))
        if (found := sums.seen()) is None:
            pending[name] = sums
        else:
            seen[name] = found
    for number in range(BUILDS, MOST_BUILDS):
        if not pending:
            break
        tensors = another(number)
        for name, sums in list(pending.items()):
            sums.add(tensors.pop(name))
            if (found := sums.seen()) is not None:
                seen[name] = found
                del pending[name]
    return Observed({name: seen[name] for name in mine}, notes)


OTHER_WEIGHTS = (
    "warning: the factory gives different weights under the same seed (it reads a clock, or a generator of its "
    "own): an interrupted fit may not end in the same file, and another process starts from other weights"
)


class _Sums:
    """Builds of one tensor, added up."""

    def __init__(self, name: str, first: Tensor) -> None:
        self.name, self.first, self.builds = name, reals(first), 1
        self.paired = first.is_complex()
        self.shape = (*first.shape, 2) if self.paired else tuple(first.shape)
        self.random = np.zeros(self.first.shape, bool)
        self.total = self.squares = np.zeros(0)
        self.fewer = 0

    def add(self, tensor: Tensor) -> None:
        """One more build. Raises SubcompressError if it is not finite."""
        difference = reals(tensor) - self.first
        if not math.isfinite(float(torch.from_numpy(difference).sum(dtype=torch.float64))):
            raise SubcompressError(f"{self.name} holds nan or inf in another build of the network: initialize it")
        differs = difference != 0
        before, self.random = int(np.count_nonzero(self.random)), np.logical_or(self.random, differs, out=differs)
        self.fewer = int(np.count_nonzero(self.random)) - before if self.builds > 1 else 0
        if self.builds == 1:
            self.total, self.squares = difference, np.square(difference)
        else:
            self.total += difference
            self.squares += np.square(difference, out=difference)
        self.builds += 1

    def seen(self) -> Seen | None:
        """What the builds say, None if they leave it open and another may be made."""
        last = self.builds >= MOST_BUILDS
        # Among many values a few are equal by chance: a uniform float32 has 24 random bits.
        if self.fewer > (len(self.first) / 10_000 if len(self.first) > 100_000 else 0):
            if not last:
                return None
            self.random[:] = True  # equal by chance so far
        if not self.random.any():
            return Seen(alike(np.uint8(0), len(self.first)), ())
        seen = Seen(*(grouped_parts if self.paired else grouped)(self._moments(), self.random, self.shape))
        centered = any(isinstance(d.center, np.ndarray) for d in seen.drawn)
        return None if centered and self.builds < CENTER_BUILDS else seen

    def _moments(self) -> Moments:
        mean = self.total / self.builds
        variance = np.square(mean)
        np.subtract(self.squares / self.builds, variance, out=variance)
        np.maximum(variance, 0, out=variance)
        variance *= self.builds / (self.builds - 1)
        mean += self.first
        return Moments(mean, variance, self.builds)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return model.named_parameters(remove_duplicate=False)


def reals(p: Tensor) -> np.ndarray:
    """The real numbers of a tensor in a row, float32 (float64 where it is)."""
    p = p.detach()
    flat = (torch.view_as_real(p.resolve_conj()) if p.is_complex() else p).reshape(-1).cpu()
    if not flat.is_floating_point():
        return flat.double().numpy()
    return array_of(flat if flat.dtype == torch.float64 else flat.float())


def _same(model: nn.Module, again: nn.Module, mine: dict[str, Tensor]) -> bool:
    others = dict(_parameters(_checked(model, again, mine)))
    return all(
        torch.equal(p, others[n]) or np.array_equal(reals(p), reals(others[n]), equal_nan=True) for n, p in mine.items()
    )


def _checked(model: nn.Module, other: nn.Module, mine: dict[str, Tensor]) -> nn.Module:
    """Another build. Raises SubcompressError if it is the same network, or one of other parameters."""
    shared = next((n for n, p in _parameters(other) if n in mine and p.data_ptr() == mine[n].data_ptr()), None)
    if other is model or shared is not None:
        again = "the same object again" if other is model else f"{shared} of the previous network again"
        raise SubcompressError(
            f"a factory must build a new network each time it is called; this one returns {again}: build all of "
            "it inside the factory"
        )
    shapes, others = ({n: tuple(p.shape) for n, p in _parameters(m)} for m in (model, other))
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            raise SubcompressError(
                f"a factory must build the same network under every seed; {name} is {_said(shapes, name)} in "
                f"one build and {_said(others, name)} in another: let its size depend on nothing random"
            )
    return other


def _said(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"
