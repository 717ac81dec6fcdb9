"""An inverted pendulum on a cart, balanced by a policy that is evolved in the coordinates of a subspace.

Li, Farkhoor, Liu, Yosinski 2018, "Measuring the Intrinsic Dimension of Objective Landscapes",
https://arxiv.org/abs/1804.08838; the cart is that of Barto, Sutton, Anderson 1983, with a force that is not fixed.
Evolution and policy are those of examples/inverted_pendulum.py; here many episodes run at a time, without MuJoCo.
"""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from inverted_pendulum import Space, State, network, rounded
from inverted_pendulum import evolve as generations

from subcompress import format
from subcompress.rebuild.expand import expand

Array = NDArray[np.float64]

LONGEST, FORCE, STEP = 500, 10.0, 0.02
"""Steps of an episode in which the pole never falls, newtons, and seconds."""

LIMITS = np.array([1.0, 0.2])
"""Limits of place and angle, in meters and radians: beyond one of them the pole has fallen."""

UNITS = np.array([1.0, 1.0, 0.2, 1.0])
"""Place, speed, angle and its speed are divided by these for the policy."""

MOST, JUDGED, TESTED, BITS = 60, 10, 50, 4
"""Generations, episodes that judge the best of one, fresh episodes for the result, and bits of a coordinate."""


def starts(first: int, episodes: int) -> Array:
    """The states that episodes begin in, (episodes, 4); `first` is the seed."""
    return np.random.default_rng(first).uniform(-0.05, 0.05, (episodes, 4)) * [4, 1, 1, 1]


def rewards(policies: list[State], begin: Array) -> Array:
    """The steps that each policy keeps the pole up in each episode, (policies, episodes)."""
    layers = [np.stack([p[name].double().numpy() for p in policies]) for name in policies[0]]
    w1, b1, w2, b2, w3, b3 = (t[:, None] if t.ndim == 2 else t.swapaxes(1, 2) for t in layers)
    seen = np.broadcast_to(begin, (len(policies), *begin.shape)).copy()
    up, total = np.ones(seen.shape[:2], bool), np.zeros(seen.shape[:2])
    for _ in range(LONGEST):
        outputs = np.tanh(np.tanh(seen / UNITS @ w1 + b1) @ w2 + b2) @ w3 + b3
        force = FORCE * np.clip(outputs[..., 0] - outputs[..., 1], -1, 1)
        seen = moved(seen, force)
        up &= (np.abs(seen[..., ::2]) <= LIMITS).all(-1)
        total += up
        if not up.any():
            break
    return total


def moved(state: Array, force: Array) -> Array:
    """Cart (1 kg) and pole (0.1 kg, 1 m) a step later."""
    x, v, angle, speed = np.moveaxis(state, -1, 0)
    sine, cosine = np.sin(angle), np.cos(angle)
    push = (force + 0.05 * speed**2 * sine) / 1.1
    turn = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    v, speed = v + STEP * (push - 0.05 * turn * cosine / 1.1), speed + STEP * turn
    return np.stack([x + STEP * v, v, np.clip(angle + STEP * speed, -1, 1), speed], -1)


def evolve(d: int, seed: int, path: Path | None = None) -> float:
    """The reward, 1 at most, over fresh episodes, of the policy that evolution finds in d coordinates; 0 stands for as
    many as there are weights, float ones. With a path, what is tried is what a file can hold, and it is written there.
    """
    space = Space.of(d or sum(p.numel() for p in network().parameters()), seed)
    begin, judging = starts(seed, 3), starts(10_000 + seed, JUDGED)
    best, kept = -1.0, np.zeros(space.operator.d)

    def tried(z: Array) -> State:
        integers, A = rounded(z, BITS)
        return space.state(z if path is None else integers / A)

    def loss(z: Array) -> float:
        return -float(rewards([tried(z)], begin).mean())

    rng, population = np.random.default_rng(seed), max(8, 4 + int(3 * math.log(space.operator.d)))
    for found in islice(generations(loss, np.zeros(space.operator.d), 1.0, population, rng), MOST):
        judged = float(rewards([tried(found.best)], judging).mean())
        if judged > best:
            best, kept = judged, found.best
        if best >= LONGEST:
            break
    policy = tried(kept)
    if path is not None:
        record = space.record(kept, BITS)
        format.save(record, path)
        policy = dict(expand(record))
    return float(rewards([policy], starts(20_000 + seed, TESTED)).mean()) / LONGEST


make_net = network
THRESHOLD = 0.95
LITERATURE = """Li et al. 2018 solve MuJoCo's pendulum with as many weights at d = 4; solved is 0.95 of the longest
episode (gymnasium)."""
