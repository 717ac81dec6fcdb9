"""Which values of a network coordinates act on, and how far each moves: made once, before anything is trained.

theta = start + scale * P z. A scale is how far a piece of a tensor moves, which `moves` measures; where it
was not measured, it is guessed from the start. All pieces share all coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.base import OnBase
from subcompress.errors import SubcompressError
from subcompress.format.record import LIMIT, LOWEST_SCALE
from subcompress.operators import EXACT, OPERATORS, HadamardBlocks, Operator
from subcompress.operators.forms import NO_COORDINATES, Form, Pattern, Seeded, chosen_values, seeded_integers
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends import host_backend
from subcompress.subspace.low_rank import between, factored
from subcompress.subspace.starts import PieceStart, Start, Starts, moving_weights, recognize
from subcompress.support.names import AUTO
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import DTYPES, Layout, TensorSpec
from subcompress.tensors.rounding import TINY, rounded

SPREAD = {2: 1.2, 3: 0.7, 4: 0.4, 5: 0.22, 6: 0.12, 7: 0.06, 8: 0.03}
"""Rounding step by bits, in standard deviations of the coordinates when rounding begins."""

CODED_BITS = {2: 1.6, 3: 2.5, 4: 3.4, 5: 4.3, 6: 5.2, 7: 6.2, 8: 7.2}
"""Bits that a coordinate takes in a file by its precision, until some are known (benchmarks/levers.py)."""

GUESSED = 1 / 4
"""The scale of a tensor whose move was not measured, as a share of the standard deviation of its start."""

HALVINGS = 15
"""Scales are the largest one halved up to so many times: measured moves are no more exact than that, and files say it
in half a byte."""

FARTHEST = 8.0
"""The largest standard deviation of z, in units of the scale, if each weight has a coordinate that draws its start."""

Scales = Mapping[str, tuple[float, ...]]
"""For each tensor, the scales of its pieces that coordinates act on."""


@dataclass(frozen=True, eq=False)
class Part:
    """Pieces of tensors that share coordinates: theta = start + scale * P z, with a start and a scale for each piece.

    specs: whole tensors, or pieces of one as separate rows, see `Assembly`; forms: how a file describes the starts,
    None for those of the base; starts: the same as numbers, one or flattened values; spreads: for each piece, the
    standard deviation that z starts with, if each weight has a coordinate that it starts from.
    """

    operator: Operator
    specs: tuple[TensorSpec, ...]
    scales: tuple[float, ...]
    starts: tuple[float | Tensor, ...]
    forms: tuple[Form | None, ...] = ()
    spreads: tuple[float, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Real numbers of each piece."""
        return [spec.reals for spec in self.specs]

    @property
    def firsts(self) -> list[int]:
        """The first row of each piece."""
        return list(accumulate(self.sizes, initial=0))[:-1]


@dataclass(frozen=True, eq=False)
class Assembly:
    """A tensor of several pieces. pattern: the piece of each real number; sources: for each piece, the name of its row
    in a part, or its values if no coordinate acts on it."""

    spec: TensorSpec
    pattern: Pattern
    sources: tuple[str | Tensor, ...]
    dtype: torch.dtype = field(init=False)  # torch.compile follows no look-up of a dtype by its name

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", self.spec.torch_dtype)

    @cached_property
    def order(self) -> Tensor:
        """Where each value of the tensor lies among those of its pieces, end to end, (n,) int64."""
        firsts = list(accumulate(self.pattern.counts, initial=0))
        found = np.empty(self.pattern.size, np.int64)
        for item, rank, places in self.pattern.places(0, self.pattern.size):
            view = found[places]
            found[places] = firsts[item] + rank + np.arange(len(view))
        return torch.from_numpy(found)

    def tensor(self, pieces: list[Tensor]) -> Tensor:
        """The tensor of these pieces, each flat."""
        spec = self.spec
        whole = pieces[0] if len(pieces) == 1 else torch.cat([p.to(pieces[0].dtype) for p in pieces])
        whole = whole if len(pieces) == 1 else whole[self.order.to(whole.device)]
        if spec.dtype == "C64":
            return torch.view_as_complex(whole.view(*spec.shape, 2))
        return whole.view(spec.shape).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix of a base with factors. base: its values; sources: those of the right factor and of the left one, as in
    an `Assembly`, or that of the matrix between directions of the base."""

    spec: TensorSpec
    rank: int
    base: Tensor
    sources: tuple[str | Tensor, ...]
    directions: tuple[Tensor, Tensor] | None = None
    dtype: torch.dtype = field(init=False)
    _held: dict[torch.device, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", self.spec.torch_dtype)

    def tensor(self, pieces: list[Tensor]) -> Tensor:
        """The matrix with these factors, each of any shape."""
        device, dtype = pieces[0].device, self.dtype
        if device not in self._held:
            self._held[device] = [t.to(device) for t in (self.base, *(self.directions or ()))]
        base, *directions = self._held[device]
        if directions:
            u, v = directions
            return between(base, pieces[0].view(self.rank, self.rank), (u, v), dtype)
        right, left = pieces
        return factored(base, left.view(-1, self.rank), right.view(self.rank, -1), dtype)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a network is trained. layout: that of the state dict; starts: name -> how the tensor starts, in that order;
    parts: what is trained; assemblies: tensors of several pieces and those with factors, by name; base: its base."""

    layout: Layout
    starts: Mapping[str, Start]
    parts: tuple[Part, ...]
    seed: int
    base: OnBase | None = None
    assemblies: Mapping[str, Assembly | Product] = field(default_factory=dict)

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
        """Adam's step that moves a weight by 0.35 of its scale, in root mean square."""
        return 0.35 / max(1.0, self.parts[0].operator.row_norm)

    def lines(self) -> list[str]:
        """How each tensor starts, a line each."""
        return [f"{spec}: {self.starts[spec.name].why}" for spec in self.layout]


def make_plan(
    module: nn.Module | Starts,
    d: int,
    *,
    bits: int = 4,
    seed: int = 0,
    operator: str = AUTO,
    structured: str = "random",
    base: OnBase | None = None,
    act_on: str = DEFAULT,
    scales: Scales | None = None,
    still: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """The plan for d coordinates.

    module: the network, or its starts where they are known. base: its base, whose values it has; act_on: see
    `acting.acting_of`. scales: how far pieces move, guessed by default; still: by tensor the (n,) values that no
    coordinate acts on. Raises SubcompressError for options that cannot be met and networks that cannot be fitted.
    """
    check_options(bits, seed, operator)
    operator = "hadamard" if operator == AUTO else operator
    if base is not None and not OPERATORS[operator].exact:
        raise SubcompressError(
            f"on a base, --operator must be one that can be packed, {' or '.join(EXACT)}; got {operator}"
        )
    known = module if isinstance(module, Starts) else recognize(module, structured, base, act_on)
    starts = known.of(still)
    D = moving_weights(known.layout, starts)
    if D == 0:
        raise SubcompressError("the model has no weights to train: give another")
    if not 1 <= d <= D:
        raise SubcompressError(f"--d must be between 1 and the model's D = {D} weights; got {d}")
    return _Planner(known.layout, starts, d, D, bits, seed, operator, base, scales).plan()


def guessed_scales(starts: Mapping[str, Start]) -> dict[str, tuple[float, ...]]:
    """Scales from how tensors start, where moves were not measured."""
    return {
        name: (GUESSED * s.reach,) if s.kind == "base" else tuple(GUESSED * p.reach for p in s.pieces if not p.fixed)
        for name, s in starts.items()
        if s.moves
    }


def check_options(bits: int, seed: int, operator: str) -> None:
    """Raise SubcompressError for numbers and names that no plan takes."""
    if bits not in SPREAD:
        raise SubcompressError(f"--bits must be one of {', '.join(map(str, SPREAD))}; got {bits}")
    if not 0 <= seed < 1 << 64:
        raise SubcompressError(f"--seed must be between 0 and 2^64 - 1; got {seed}")
    if operator not in (AUTO, *OPERATORS):
        raise SubcompressError(
            f"--operator must be {AUTO} or one of {', '.join(OPERATORS)}; got {operator!r}"
            + suggestion(operator, (AUTO, *OPERATORS))
        )


@dataclass(eq=False)
class _Row:
    """A piece that coordinates act on. drawn: z brings its random start."""

    spec: TensorSpec
    form: Form | None
    start: float | Tensor
    scale: float
    reach: float
    drawn: bool = False


class _Planner:
    def __init__(
        self,
        layout: Layout,
        starts: Mapping[str, Start],
        d: int,
        D: int,
        bits: int,
        seed: int,
        operator: str,
        base: OnBase | None,
        scales: Scales | None,
    ) -> None:
        self.layout, self.starts, self.seed, self.base = layout, starts, seed, base
        self.d, self.D, self.bits, self.operator = d, D, bits, operator
        self.scales = dict(guessed_scales(starts)) | dict(scales or {})
        self.alone = d == D and operator in EXACT and base is None
        self.assemblies: dict[str, Assembly | Product] = {}
        self.seeded = 0

    def plan(self) -> Plan:
        seeded = sum(p.reals for s in self.starts.values() for p in s.pieces if self._numbered(p))
        self.numbers = seeded_integers(self.seed, seeded) if seeded else None
        rows = [row for spec in self.layout for row in self._rows(spec, self.starts[spec.name])]
        groups = [rows]
        if self.alone:  # a start that z brings, and one that it does not
            groups = [g for g in ([r for r in rows if r.drawn], [r for r in rows if not r.drawn]) if g]
        parts = tuple(self._part(group, number) for number, group in enumerate(groups))
        return Plan(self.layout, self.starts, parts, self.seed, self.base, self.assemblies)

    def _rows(self, spec: TensorSpec, start: Start) -> list[_Row]:
        """The pieces of a tensor that coordinates act on; notes how it is assembled where there are others."""
        if not spec.size or start.kind not in ("coded", "base", "factored"):
            return []
        scales = iter(self._scales_of(spec, start)) if start.moves else iter(())
        if start.kind == "base":
            assert self.base is not None
            values = torch.from_numpy(_as_added(self.base.reals(spec.name)).copy())
            return [_Row(spec, None, values, next(scales), start.reach)]
        rows: list[_Row] = []
        sources: list[str | Tensor] = []
        several, dtype = bool(start.runs or start.rank), "F32" if start.rank else spec.real_dtype
        for number, piece in enumerate(start.pieces):
            first, self.seeded = self.seeded, self.seeded + (piece.reals if self._numbered(piece) else 0)
            # No tensor of a state dict is called so: control characters are refused in names.
            own = TensorSpec(f"{spec.name}\0{number}", dtype, (piece.reals,)) if several else spec
            if piece.fixed:
                sources.append(torch.from_numpy(self._values(piece.form, piece.reals, own, first)))
                continue
            row = _Row(own, piece.form, 0.0, next(scales), piece.reach)
            row.start = self._start(row, piece.reals, own, first)
            rows.append(row)
            sources.append(own.name)
        if start.rank:
            assert self.base is not None
            base = self.base.tensor(spec.name)
            self.assemblies[spec.name] = Product(spec, start.rank, base, tuple(sources), start.directions)
        elif start.runs or (rows == [] and start.pieces[0].fixed):
            runs = start.runs or ((0, spec.reals),)
            self.assemblies[spec.name] = Assembly(spec, Pattern(runs, spec.reals), tuple(sources))
        return rows

    def _scales_of(self, spec: TensorSpec, start: Start) -> tuple[float, ...]:
        """A scale for each piece that coordinates act on. Raises SubcompressError for those of another network."""
        found = self.scales[spec.name]
        if len(found) != (1 if start.kind == "base" else sum(not p.fixed for p in start.pieces)):
            raise SubcompressError(
                f"the moves were measured on another network, or on this one given in another way: {spec.name} "
                "differs; measure them with the factory or the instance that the Subspace is made of"
            )
        return found

    def _numbered(self, piece: PieceStart) -> bool:
        """Whether the seed gives its values, which z does where each has a coordinate of its own."""
        return isinstance(piece.form, Seeded) and (piece.fixed or not self.alone)

    def _start(self, row: _Row, n: int, spec: TensorSpec, first: int) -> float | Tensor:
        """The numbers that a piece starts from."""
        form = row.form
        assert form is not None
        if self.alone and isinstance(form, Seeded):
            row.scale = max(row.scale, row.reach / FARTHEST)
            row.form, row.drawn = form.center, True
        if isinstance(row.form, float):
            return row.form
        return torch.from_numpy(self._values(row.form, n, spec, first))

    def _values(self, form: Form | None, n: int, spec: TensorSpec, first: int) -> np.ndarray:
        """n values of a start as they are added to, (n,) float32, or float64 where the tensor is."""
        assert form is not None
        if not isinstance(form, Seeded):
            return _as_added(chosen_values(form, 0, n, spec.real_dtype))
        out = np.empty(n, np.float32)
        plain = isinstance(form.center, float)
        assert self.numbers is not None
        center = form.center if isinstance(form.center, float) else 0.0
        host_backend().fill(self.numbers, NO_COORDINATES, [Segment(first, out, form.scale, center)])
        if not plain:
            host_backend().memory.add_base(out, out, chosen_values(form.center, 0, n, spec.real_dtype))
        return out.astype(np.float64) if spec.dtype == "F64" else out  # where sums are in float64

    def _part(self, rows: list[_Row], group: int) -> Part:
        D = sum(row.spec.reals for row in rows)
        d = D if self.alone else self.d
        kind = OPERATORS[self.operator]
        if issubclass(kind, HadamardBlocks):
            operator: Operator = _fewer_rows(kind.sized(D, d, self.seed, 0, group), self.bits)
        else:
            shapes = [(*row.spec.shape, 2) if row.spec.dtype == "C64" else row.spec.shape for row in rows]
            operator = kind.shaped(shapes, d, (self.seed + group) % (1 << 64))
        largest = max(max(row.scale for row in rows), LOWEST_SCALE * 2.0**HALVINGS)
        scales = tuple(_halved(largest, row.scale) for row in rows)
        spreads = tuple(row.reach / scale if row.drawn else 0.0 for row, scale in zip(rows, scales, strict=True))
        return Part(
            operator,
            tuple(row.spec for row in rows),
            scales,
            tuple(row.start for row in rows),
            tuple(row.form for row in rows),
            spreads if any(spreads) else (),
        )


def _halved(largest: float, scale: float) -> float:
    """The scale as the largest one halved, nearest in its logarithm."""
    halvings = round(math.log2(largest / scale)) if scale > 0 else HALVINGS
    return math.ldexp(largest, -min(max(halvings, 0), HALVINGS))


def _as_added(values: np.ndarray) -> np.ndarray:
    """Values as coordinates are added to them: float32 (float64 where they are), without subnormal numbers."""
    if values.dtype == np.float64:
        return values
    found = rounded(values, DTYPES["F32"])
    return np.where(np.abs(found) >= TINY, found, np.float32(0))


def _fewer_rows(operator: HadamardBlocks, bits: int) -> HadamardBlocks:
    """The sum of a block's integers is bounded: with many bits blocks must hold fewer coordinates."""
    most = LIMIT / 2 / (0.8 / SPREAD[bits])
    D, d, K = operator.D, operator.d, operator.K
    while min(d, operator.free) > most and -(-D // (operator.m // 2)) * (operator.m // 2 - K) >= d:
        operator = replace(operator, log2_m=operator.log2_m - 1)
    return operator
