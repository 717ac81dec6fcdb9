"""A policy of 562 weights that balances the inverted pendulum, evolved in d coordinates and kept in about 150 bytes.

    pip install '.[rl]'  # in a clone
    python examples/inverted_pendulum.py [--d 1,2,3,4,8] [--seed 0] [--generations 300] [--episodes 100] [-o FILE]

Li et al. 2018 (arXiv:1804.08838) solve MuJoCo's InvertedPendulum with D = 562 weights at d = 4, by an evolution
strategy. Here: gymnasium's InvertedPendulum-v5, theta = start + scale * P z, z evolved by CMA-ES and rounded to a few
bits, a file written and read back, and the policy rebuilt from that file judged over episodes that evolution has not
seen.

What was chosen, and how it may differ from the paper, whose code for this task is not published:

- Layers 4-20-20-2 with tanh. D = 562 is known, the layers are not: 4-80-2 has as many.
- The action is the difference of the two outputs, in units of the largest force, clipped to it. The evolution strategy
  of Salimans et al. 2017 (arXiv:1703.03864), whose Humanoid network has the 166,673 weights of the paper's, can choose
  between fixed forces too.
- Position and angle enter in units of their limits (1 m and 0.2 rad), velocities as they are. Salimans et al. divide by
  deviations measured on the way. It matters: `--raw` leaves it out.
- The random start is the operator's, spread like torch's default initialization; the columns of P are of low sequency,
  not Gaussian.
- Evolution may begin again within one subspace (see `search`), so this asks what the subspace holds, not what one run
  from the start finds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from subcompress import SubcompressError, format
from subcompress.format.record import Coded, Group, Record, bfloat16
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.expand import digest_of, expand, expand_checked
from subcompress.tensors.layout import Layout

ENVIRONMENT = "InvertedPendulum-v5"
SOLVED, LONGEST = 950, 1000
"""gymnasium's threshold, and the steps of an episode in which the pole never falls."""

PAPER_D = 4
UNITS = np.array([1.0, 0.2, 1.0, 1.0])
"""Position, angle and their velocities are divided by these: limits of the environment, which no file holds."""

FORCE = 3.0

EPISODES_EACH, EPISODES_JUDGED = 3, 20
"""Episodes for a candidate, and for the best of a generation."""

PATIENCE = 15
"""Generations without a better candidate after which evolution begins again."""

MOST_STEPS = 2_000_000
"""Environment steps after which evolution ends: a minute and a half where the core is free."""

TRAINING, JUDGING, TESTING = 0, 1 << 30, 1 << 31
"""First environment seeds: three sets that do not meet."""

State = dict[str, Tensor]


def network() -> nn.Sequential:
    """The policy: 4 observations, 562 weights, 2 outputs."""
    return nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2))


class Generation(NamedTuple):
    """What `evolve` yields: the best candidate of a generation, its loss, and the mean and step size afterwards."""

    best: np.ndarray
    lowest: float
    mean: np.ndarray
    sigma: float


def evolve(
    loss: Callable[[np.ndarray], float], start: np.ndarray, sigma: float, population: int, rng: np.random.Generator
) -> Iterator[Generation]:
    """The (mu/mu_w, lambda)-CMA-ES without end: Hansen 2016, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772,
    figure 6 and table 1, with positive weights only."""
    d, mu = len(start), population // 2
    weights = math.log((population + 1) / 2) - np.log(np.arange(1, mu + 1))
    weights /= weights.sum()
    mass = 1 / float((weights**2).sum())
    c_sigma = (mass + 2) / (d + mass + 5)
    damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (d + 1)) - 1) + c_sigma
    c_path = (4 + mass / d) / (d + 4 + 2 * mass / d)
    c_one = 2 / ((d + 1.3) ** 2 + mass)
    c_mu = min(1 - c_one, 2 * (mass - 2 + 1 / mass) / ((d + 2) ** 2 + mass))
    usual = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))  # the length of a normal vector
    mean, C, path, path_sigma = start.astype(float), np.eye(d), np.zeros(d), np.zeros(d)
    generation = 0
    while True:
        generation += 1
        values, axes = np.linalg.eigh(C)
        lengths = np.sqrt(np.maximum(values, 1e-20))
        moves = (rng.standard_normal((population, d)) * lengths) @ axes.T
        tried = mean + sigma * moves
        losses = np.array([loss(z) for z in tried])
        order = np.argsort(losses, kind="stable")
        best = moves[order[:mu]]
        move = weights @ best
        mean = mean + sigma * move
        path_sigma = (1 - c_sigma) * path_sigma
        path_sigma += math.sqrt(c_sigma * (2 - c_sigma) * mass) * (axes @ (axes.T @ move / lengths))
        length = float(np.linalg.norm(path_sigma))
        calm = length / math.sqrt(1 - (1 - c_sigma) ** (2 * generation)) < (1.4 + 2 / (d + 1)) * usual
        path = (1 - c_path) * path + calm * math.sqrt(c_path * (2 - c_path) * mass) * move
        one = np.outer(path, path) + (0 if calm else c_path * (2 - c_path)) * C
        C = (1 - c_one - c_mu) * C + c_one * one + c_mu * (best.T * weights) @ best
        sigma *= math.exp(c_sigma / damping * (length / usual - 1))
        yield Generation(tried[order[0]], float(losses[order[0]]), mean, sigma)


class Pendulum:
    """The environment, counting what is asked of it."""

    def __init__(self, raw: bool = False) -> None:
        try:
            import gymnasium
            import mujoco  # noqa: F401  (gymnasium says only later that it is missing)
        except ImportError as e:
            raise SystemExit(f"{ENVIRONMENT} needs {e.name}: pip install '.[rl]'") from None
        self.env: Any = gymnasium.make(ENVIRONMENT, disable_env_checker=True)
        self.units = np.ones(4) if raw else UNITS
        self.steps = self.episodes = 0

    def rewards(self, state: State, first: int, episodes: int) -> np.ndarray:
        """The reward of each episode: the steps that the pole stays up, 1,000 at most. `first` is the first seed."""
        # NumPy, for one observation at a time: a call of torch costs more than all of these products.
        w1, b1, w2, b2, w3, b3 = (t.double().numpy() for t in state.values())
        w1, w3, b3 = w1 / self.units, FORCE * (w3[0] - w3[1]), FORCE * (b3[0] - b3[1])
        found = np.zeros(episodes)
        for episode in range(episodes):
            seen, _ = self.env.reset(seed=first + episode)
            over = False
            while not over:
                force = float(w3 @ np.tanh(w2 @ np.tanh(w1 @ seen + b1) + b2) + b3)
                action = np.array([min(max(force, -FORCE), FORCE)], np.float32)
                seen, reward, fell, cut, _ = self.env.step(action)
                found[episode] += reward
                self.steps += 1
                over = fell or cut
        self.episodes += episodes
        return found


def rounded(z: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Integers of `bits` bits, and A: z is about integers / A, with A as large as the largest coordinate allows."""
    top = (1 << (bits - 1)) - 1
    A = min(max(1, math.floor(top / max(float(np.abs(z).max()), 1e-9))), 64)
    return np.clip(np.rint(z * A), -top, top).astype(np.int32), A


@dataclass(frozen=True)
class Space:
    """The policies of d coordinates: as evolution tries them, and as a file holds them."""

    operator: HadamardBlocks
    layout: Layout
    scales: tuple[float, ...]

    @classmethod
    def of(cls, d: int, seed: int) -> Space:
        """The space of a seed; every tensor spreads like torch's own initialization, uniform in +-1/sqrt(fan_in)."""
        net = network()
        layers = [layer for layer in net if isinstance(layer, nn.Linear)]
        operator = HadamardBlocks.sized(sum(p.numel() for p in net.parameters()), d, seed)
        scales = [
            1 / math.sqrt(3 * layer.in_features * max(1, operator.K)) for layer in layers for _ in ("weight", "bias")
        ]
        return cls(operator, Layout.of(net.state_dict()), tuple(scales))

    def state(self, z: np.ndarray) -> State:
        """The network at z."""
        flat = self.operator.affine(torch.from_numpy(z).float())
        parts = flat.split([spec.size for spec in self.layout])
        return {
            spec.name: (scale * part).view(spec.shape)
            for spec, scale, part in zip(self.layout, self.scales, parts, strict=True)
        }

    def record(self, z: np.ndarray, bits: int) -> Record:
        """z rounded, ready for a file."""
        coordinates, A = rounded(z, bits)
        entries = tuple(Coded(bfloat16(scale / A)) for scale in self.scales)
        group = Group(replace(self.operator, A=A), bits, coordinates)
        record = Record(self.operator.seed, self.layout, (group,), entries)
        record.check()
        return replace(record, digest=digest_of(record, expand(record)))


def search(space: Space, pendulum: Pendulum, bits: int, seed: int, generations: int) -> Record:
    """Evolve until a generation's best never falls in the judging episodes; otherwise the best one judged.

    Where no candidate has been better than before for a while, evolution begins again elsewhere with twice the
    population (Auger and Hansen 2005, A Restart CMA Evolution Strategy With Increasing Population Size).
    """
    d = space.operator.d
    rng = np.random.default_rng(seed)
    population, done, best, best_record = max(8, 4 + int(3 * math.log(d))), 0, -1.0, None

    def loss(z: np.ndarray) -> float:
        # What is tried is what a file can hold. Every candidate of a generation meets the same episodes, every
        # generation new ones.
        integers, A = rounded(z, bits)
        state = space.state(integers / A)
        return -float(pendulum.rewards(state, TRAINING + EPISODES_EACH * done, EPISODES_EACH).mean())

    while done < generations:
        start = np.zeros(d) if done == 0 else 2 * rng.standard_normal(d)
        reached, improved = 0.0, done
        for candidate, lowest, _, sigma in evolve(loss, start, 1.0, population, rng):
            done += 1
            record = space.record(candidate, bits)
            judged = pendulum.rewards(expand(record), JUDGING, EPISODES_JUDGED)
            if -lowest > reached:
                reached, improved = -lowest, done
            if judged.mean() > best:
                best, best_record = float(judged.mean()), record
            print(
                f"d = {d}, generation {done}, {population} policies: best {-lowest:.0f}, judged "
                f"{judged.mean():.0f}, sigma {sigma:.2f}, {pendulum.steps:,} steps",
                file=sys.stderr,
            )
            if judged.min() >= LONGEST or done == generations or pendulum.steps >= MOST_STEPS:
                assert best_record is not None
                return best_record
            if done - improved >= PATIENCE:
                break
        population = min(2 * population, 128)
    raise SubcompressError(f"--generations must be at least 1; got {generations}")


def measure(d: int, options: argparse.Namespace) -> str:
    """The row of the table for d: evolve, write the file, read it back, rebuild the policy and try it."""
    began, pendulum = time.perf_counter(), Pendulum(options.raw)
    record = search(Space.of(d, options.seed), pendulum, options.bits, options.seed, options.generations)
    used, steps, seconds = pendulum.episodes, pendulum.steps, time.perf_counter() - began
    path = options.output if len(options.d) == 1 else options.output.with_stem(f"{options.output.stem}-d{d}")
    path.parent.mkdir(parents=True, exist_ok=True)
    size = format.save(record, path)
    rebuilt = expand_checked(format.read(path)[0])
    rewards = pendulum.rewards(rebuilt, TESTING, options.episodes)
    solved = "yes" if rewards.mean() >= SOLVED else "no"
    return (
        f"| {d} | {rewards.mean():.1f} | {rewards.std():.1f} | {solved} | {size} | {used:,} | {steps:,} "
        f"| {seconds:.0f} |"
    )


def numbers(text: str) -> list[int]:
    """The integers of a list with commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Evolve for every d and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=numbers, default=[PAPER_D], help="one or several, as in 1,2,3,4,8")
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generations", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=100, help="fresh ones, for the rebuilt policy")
    parser.add_argument("--raw", action="store_true", help="the angle in radians, not in units of its limit")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("runs/pendulum.safetensors"), help="with several d, one file for each"
    )
    options = parser.parse_args()
    if options.seed < 0 or options.seed >> 64 or options.episodes < 1:
        parser.error("--seed is between 0 and 2^64 - 1, --episodes at least 1")
    torch.set_num_threads(1)
    try:
        rows = [measure(d, options) for d in options.d]
    except SubcompressError as e:
        raise SystemExit(str(e)) from None
    seen = "as they come" if options.raw else "in units of their limits"
    print(
        f"{ENVIRONMENT}, D = 562, {options.bits} bits, seed {options.seed}, position and angle {seen}.\n"
        f"Rewards of the policies rebuilt from their files, over {options.episodes} fresh episodes.\n"
        f"Solved: {SOLVED} of {LONGEST} (gymnasium); Li et al. 2018 solve it at d = {PAPER_D}.\n"
    )
    print("| d | mean reward | std | solved | file, bytes | episodes used | steps used | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
