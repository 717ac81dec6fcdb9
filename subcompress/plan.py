"""Which tensors of a network share which coordinates, and in what units: made once, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from subcompress.base import OnBase
from subcompress.errors import SubcompressError
from subcompress.layout import Layout, TensorSpec
from subcompress.operators import OPERATORS, HadamardBlocks, Operator
from subcompress.record import LIMIT
from subcompress.roles import DEFAULT
from subcompress.starts import Start, recognise

FROZEN = 16
"""Frozen slots a block, whose sum is the random start."""

CONSTANT_SHARE = 1 / 8
"""Of the coordinates: what the tensors that start at a constant (norms, zero biases) take for their own."""

HEAD_SHARE = 1 / 8
"""Of the coordinates of a network on a base: what new tensors with a random start take."""

SPREAD = {2: 1.2, 3: 0.7, 4: 0.4, 5: 0.22, 6: 0.12, 7: 0.06, 8: 0.03}
"""Rounding step by bits, in standard deviations of the coordinates when rounding begins."""

CODED_BITS = {2: 1.6, 3: 2.5, 4: 3.4, 5: 4.3, 6: 5.2, 7: 6.2, 8: 7.2}
"""Bits that a coordinate takes in a file by its precision, until some are known (benchmarks/levers.py)."""


@dataclass(frozen=True, eq=False)
class Part:
    """Tensors that share coordinates: theta = start + scale * (frozen + P z), a start and a scale a tensor.

    starts: a constant each, or the base's values, flattened; for operators without a random start the network's;
    spread: the standard deviation that z starts at, where a coordinate a weight leaves nothing frozen to start from.
    """

    operator: Operator
    specs: tuple[TensorSpec, ...]
    scales: tuple[float, ...]
    starts: tuple[float | Tensor, ...]
    spread: float = 0.0

    @property
    def sizes(self) -> list[int]:
        """Real numbers of each tensor."""
        return [spec.reals for spec in self.specs]

    @property
    def firsts(self) -> list[int]:
        """The first row of each tensor."""
        return list(accumulate(self.sizes, initial=0))[:-1]


@dataclass(frozen=True, eq=False)
class Plan:
    """layout: of the state dict; starts: name -> how it starts, in its order; parts: what is trained; base: what it
    stands on."""

    layout: Layout
    starts: Mapping[str, Start]
    parts: tuple[Part, ...]
    seed: int
    base: OnBase | None = None

    @property
    def d(self) -> int:
        """Coordinates of all parts."""
        return sum(p.operator.d for p in self.parts)

    @property
    def D(self) -> int:
        """Weights that are trained, as real numbers."""
        return sum(p.operator.D for p in self.parts)

    @property
    def exact(self) -> bool:
        """Whether a file can hold what is trained."""
        return all(p.operator.exact for p in self.parts)

    @property
    def lr(self) -> float:
        """Adam's step that moves a weight by 0.35 / sqrt(16) of its standard deviation, in root mean square."""
        return 0.35 / max(1.0, self.parts[0].operator.row_norm)

    def lines(self) -> list[str]:
        """How each tensor starts, a line each."""
        return [f"{spec}: {self.starts[spec.name].why}" for spec in self.layout]


_TOGETHER = ("constant", "base")
"""Starts of tensors that share coordinates with each other, and not with random ones."""


def make_plan(
    module: nn.Module,
    d: int,
    *,
    bits: int = 4,
    seed: int = 0,
    operator: str = "hadamard",
    structured: str = "store",
    base: OnBase | None = None,
    act_on: str = DEFAULT,
) -> Plan:
    """The plan for d coordinates. base: what the module stands on, whose values it has; act_on: see `roles.acted_on`.

    Raises SubcompressError for options that cannot be met and networks that cannot be fitted.
    """
    check_options(bits, seed, operator)
    if base is not None and not OPERATORS[operator].exact:
        raise SubcompressError(f"on a base, --operator is hadamard, the one that packs; given {operator}")
    starts = recognise(module, structured, base, act_on)
    state = module.state_dict(keep_vars=True)
    layout = Layout.of({name: state[name] for name in starts})
    random = [spec for spec in layout if starts[spec.name].kind == "random" and spec.size]
    constant = [spec for spec in layout if starts[spec.name].kind in _TOGETHER and spec.size]
    D0, D1 = (sum(spec.reals for spec in specs) for specs in (random, constant))
    if D0 + D1 == 0:
        raise SubcompressError("fit trains a model's weights; this one has none to train: give another")
    least = 1 + (D0 > 0 < D1)
    if not least <= d <= D0 + D1:
        raise SubcompressError(f"--d is between {least} and the model's D = {D0 + D1} weights; given {d}")
    share = CONSTANT_SHARE if base is None else 1 - HEAD_SHARE
    d1 = 0 if D1 == 0 else d if D0 == 0 else min(D1, max(1, round(d * share), d - D0), d - 1)
    if D0 > 0 < D1:
        d1 = max(d1, d - D0)
    parts: list[Part] = []
    for specs, D, share in ((random, D0, d - d1), (constant, D1, d1)):
        if D:
            parts.append(_part(state, starts, specs, D, share, bits, seed, operator, parts))
    return Plan(layout, starts, tuple(parts), seed, base)


def check_options(bits: int, seed: int, operator: str) -> None:
    """Raise SubcompressError for numbers and names that no plan takes."""
    if bits not in SPREAD:
        raise SubcompressError(f"--bits is one of {', '.join(map(str, SPREAD))}; given {bits}")
    if not 0 <= seed < 1 << 64:
        raise SubcompressError(f"--seed is between 0 and 2^64 - 1; given {seed}")
    if operator not in OPERATORS:
        raise SubcompressError(f"--operator is one of {', '.join(OPERATORS)}; {operator!r} is none of them")


def _part(
    state: Mapping[str, Tensor],
    starts: Mapping[str, Start],
    specs: list[TensorSpec],
    D: int,
    d: int,
    bits: int,
    seed: int,
    name: str,
    before: list[Part],
) -> Part:
    group = len(before)
    frozen = FROZEN if starts[specs[0].name].kind == "random" else 0
    if name == "hadamard":
        operator: Operator = _fewer_rows(HadamardBlocks.sized(D, d, seed, frozen, group), bits)
    else:
        operator = OPERATORS[name].sized(D, d, (seed + group) % (1 << 64))
    # One step of Adam moves every part's weights alike, measured in the deviations of their starts.
    ratio = before[0].operator.row_norm / operator.row_norm if before else 1.0
    scales = tuple(starts[spec.name].std / math.sqrt(FROZEN) * ratio for spec in specs)
    own = frozen and not operator.has_start
    begin: tuple[float | Tensor, ...] = tuple(
        _reals(state[spec.name]) if own or starts[spec.name].kind == "base" else starts[spec.name].value
        for spec in specs
    )
    alone = frozen and isinstance(operator, HadamardBlocks) and operator.K == 0
    return Part(operator, tuple(specs), scales, begin, math.sqrt(FROZEN) if alone else 0.0)


def _reals(p: Tensor) -> Tensor:
    p = p.detach()
    return (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).float().clone()


def _fewer_rows(operator: HadamardBlocks, bits: int) -> HadamardBlocks:
    """The sum of a block's integers is bounded: with many bits blocks must hold fewer coordinates."""
    most = LIMIT / 2 / (0.8 / SPREAD[bits])
    D, d, K = operator.D, operator.d, operator.K
    while min(d, operator.free) > most and -(-D // (operator.m // 2)) * (operator.m // 2 - K) >= d:
        operator = replace(operator, log2_m=operator.log2_m - 1)
    return operator
