"""Records with rules, drawn at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from records import plain_base, with_digest

from subcompress.base import BaseReference, BaseTensors, OnBase
from subcompress.format import rules
from subcompress.format.record import (
    FACTORED_DTYPES,
    Coded,
    Entry,
    Factored,
    Fixed,
    Group,
    Mixed,
    Record,
    Stored,
    Tied,
    Unchanged,
    bfloat16,
    group_sizes,
)
from subcompress.operators import HadamardBlocks, ScatteredBlocks
from subcompress.operators.forms import Chosen, Form, Ramp, Seeded, Table
from subcompress.tensors.layout import CODED_DTYPES, Layout, TensorSpec
from subcompress.tensors.rounding import finite, rounded

ODD = [0.0, -0.0, 1e-40, -1e-44, 2.0**-126, -(2.0**-126), 6e-8, -0.25, 65504.0, 1e30, -1e38]
"""Values of tables: zeros, subnormal ones, what cancels, and large ones."""


class Making:
    """Random entries for tensors, from a generator."""

    def __init__(self, rng: np.random.Generator, layout: Layout, standing: OnBase | None, groups: int) -> None:
        self.rng, self.layout, self.standing, self.groups = rng, layout, standing, groups
        self.scales = [bfloat16(float(rng.lognormal(-4, 2))) for _ in range(2)]
        self.tables: dict[str, list[Form]] = {}

    def scale(self) -> float:
        return float(self.rng.choice(self.scales)) * 2.0 ** -int(self.rng.integers(0, 19))

    def chosen(self, dtype: str) -> Chosen:
        """A start without a seed, one of those before now and then."""
        rng, known = self.rng, self.tables.setdefault(dtype, [])
        if known and rng.random() < 0.3:
            return known[int(rng.integers(len(known)))]
        kind = rng.integers(4)
        if kind == 0:
            return 0.0
        if kind == 1:
            return float(rng.choice([1.0, -0.5, float(np.float32(1e-3)), 2.0**-126]))
        period = int(rng.choice([1, 2, 3, 7, 64, 1000]))
        if kind == 2:
            x = np.where(rng.random(period) < 0.3, rng.choice(ODD, period), rng.normal(0, 1, period))
            x = np.where(rng.random(period) < 0.3, self.scale() * rng.integers(-8, 9, period), x)
            if dtype == "F64" and rng.random() < 0.3:
                x[0] = rng.choice([1e300, 5e-324, 1e39])
            with np.errstate(over="ignore"):
                held = (
                    rounded(x, np.dtype(np.uint16))
                    if dtype == "BF16"
                    else x.astype({"F16": "f2", "F64": "f8"}.get(dtype, "f4"))
                )
            if not finite(held):
                held = np.zeros_like(held)
            known.append(Table(held.tobytes(), dtype))
        else:
            ends = [0.0, -0.0, 1.0, -3.5, 1 / 3, 2.0**-126, 1e-42, 1e5, 1e29]
            first, step = float(rng.choice(ends)), float(rng.choice(ends)) / 2048
            known.append(Ramp(first, step, period, dtype))
        return known[-1]

    def start(self, i: int, dtype: str) -> Form:
        if self.rng.random() < 0.6:
            return self.chosen(dtype)
        scale = self.scale()
        number = int(self.rng.integers(0, 5))
        if number and (found := rules._Fans(self.layout).scale(number, i)):
            scale = found
        return Seeded(scale, self.chosen(dtype))

    def factored(self, i: int) -> Factored:
        """Factors of a random rank."""
        rank = int(self.rng.integers(1, min(self.layout.tensors[i].shape) + 1))
        sketched = bool(self.rng.random() < 0.4)
        return Factored(rank, tuple(self.piece(i, "F32") for _ in range(1 if sketched else 2)), sketched)

    def piece(self, i: int, dtype: str = "") -> Coded | Fixed:
        dtype = dtype or self.layout.tensors[i].real_dtype
        if not self.groups or self.rng.random() < 0.4:
            return Fixed(self.start(i, dtype))
        return Coded(self.scale(), int(self.rng.integers(self.groups)), self.start(i, dtype))

    def mixed(self, i: int, reals: int) -> Mixed:
        """Items by runs: few long ones, or many short ones."""
        rng = self.rng
        count = int(rng.integers(1, min(6, reals) + 1))
        runs = [(k, 1) for k in range(count)]
        room = reals - count
        for _ in range(int(rng.choice([0, 2, 200]))):
            length = int(rng.integers(1, max(2, min(room, int(rng.choice([3, reals]))) + 1)))
            if length > room:
                break
            runs.append((int(rng.integers(count)), length))
            room -= length
        order = rng.permutation(len(runs))
        return Mixed(tuple(self.piece(i) for _ in range(count)), tuple(runs[k] for k in order))

    def entry(self, i: int, entries: list[Entry]) -> Entry:
        """Of tensor i, after those of the ones before."""
        spec, rng = self.layout.tensors[i], self.rng
        alike = [j for j in range(i) if replace(self.layout.tensors[j], name="") == replace(spec, name="")]
        kind = rng.choice(["piece", "piece", "mixed", "mixed", "stored", "equal", "tied", "base", "base"])
        coded = spec.dtype in CODED_DTYPES
        held = self.standing is not None and spec.name in self.standing
        if kind == "base" and held:
            if coded and self.groups and finite(self.standing.reals(spec.name)) and rng.random() < 0.5:
                return Coded(self.scale(), int(rng.integers(self.groups)), 0.0, True)
            matrix = len(spec.shape) == 2 and spec.size and spec.dtype in FACTORED_DTYPES
            if matrix and finite(self.standing.reals(spec.name)) and rng.random() < 0.7:
                return self.factored(i)
            return Unchanged()
        if kind == "tied" and (found := [j for j in alike if not isinstance(entries[j], Tied)]):
            return Tied(found[-1])
        if kind == "equal" and (found := [j for j in alike if entries[j] == Stored()]):
            return Stored(found[-1])
        if not coded or kind in ("stored", "equal"):
            return Stored()
        return self.mixed(i, spec.reals) if kind == "mixed" and spec.reals else self.piece(i)


def _without(entry: Entry, number: dict[int, int]) -> Entry:
    """The entry with its groups numbered anew; those without values become fixed."""
    if isinstance(entry, (Mixed, Factored)):
        return replace(entry, items=tuple(_without(item, number) for item in entry.items))
    if not isinstance(entry, Coded):
        return entry
    if entry.group in number:
        return replace(entry, group=number[entry.group])
    return Unchanged() if entry.based else Fixed(entry.start)


def made(rng: np.random.Generator, seed: int, layout: Layout, standing: OnBase | None) -> Record:
    """A record of that layout."""
    G = int(rng.integers(0, 4))
    making = Making(rng, layout, standing, G)
    entries: list[Entry] = []
    for i in range(len(layout)):
        entries.append(making.entry(i, entries))
    sizes = group_sizes(layout, tuple(entries), G)
    number = {g: k for k, g in enumerate(g for g in range(G) if sizes[g])}
    groups = []
    for g, k in number.items():
        log2_m = int(rng.integers(0, 9))
        K = int(rng.integers(0, min(1 << log2_m, 17)))
        d = int(rng.integers(1, min(300, sizes[g], -(-sizes[g] >> log2_m) * ((1 << log2_m) - K)) + 1))
        bits = int(rng.integers(2, 9))
        z = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), d).astype(np.int32)
        kind = (HadamardBlocks, ScatteredBlocks)[int(rng.integers(2))]
        groups.append(Group(kind(sizes[g], d, seed, log2_m, K, int(rng.integers(9)) if K else 0, k), bits, z))
    kept = tuple(_without(e, number) for e in entries)
    size = sum(s.nbytes for s, e in zip(layout, kept, strict=True) if e == Stored())
    stored = rng.integers(0, 2, size).astype(np.uint8).tobytes()
    return with_digest(Record(seed, layout, tuple(groups), kept, stored, base=standing))


def shape(rng: np.random.Generator) -> tuple[int, ...]:
    if rng.random() < 0.5:
        return (int(rng.choice([4, 70])), 3)
    return tuple(rng.integers(0 if rng.random() < 0.1 else 1, 9, rng.integers(0, 4)).tolist())


@st.composite
def ruled_records(draw) -> Record:
    """Up to ten tensors of any dtype, some on a base, in up to three groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    on_base = draw(st.booleans())
    dtypes = [str(t) for t in rng.choice([*CODED_DTYPES, *CODED_DTYPES, "I64", "BOOL"], rng.integers(1, 11))]
    specs = [TensorSpec(f"t{i}", dtype, shape(rng)) for i, dtype in enumerate(dtypes)]
    standing = None
    if on_base:
        held = plain_base([(s.name, s.dtype, s.shape) for s in specs[: len(specs) // 2 + 1]], int(rng.integers(99)))
        base = BaseTensors(held, "base")
        standing = OnBase(BaseReference("base", "", base.digest, len(held)), base)
        specs[: len(held)] = list(standing.layout)
    return made(rng, draw(st.integers(0, 2**64 - 1)), Layout(tuple(specs)), standing)
