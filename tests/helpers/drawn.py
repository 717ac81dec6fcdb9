"""Records on bases, drawn at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from records import with_digest
from torch import Tensor

from subcompress.base import FLOATS, BaseReference, BaseTensors, OnBase
from subcompress.format.record import Coded, Entry, Group, Record, Stored, Tied, Unchanged, bfloat16, group_sizes
from subcompress.operators import HadamardBlocks, ScatteredBlocks
from subcompress.tensors.layout import CODED_DTYPES, Layout, TensorSpec
from subcompress.tensors.rounding import finite

SPECIAL = [-0.0, 1e-40, -1e-44, 2.0**-126, -(2.0**-126), 5e-324, 6e-8, 1e-7, -0.25, 65504.0]
"""Zero and subnormal values of every dtype, what cancels, and the largest F16."""


def _values(rng: np.random.Generator, spec: TensorSpec, finite: bool, scale: float) -> Tensor:
    """Of a base's tensor: normal values, multiples of a scale that may cancel, and special ones."""
    n = spec.reals
    if spec.dtype not in CODED_DTYPES:
        return torch.from_numpy(rng.integers(0, 2, n)).to(spec.torch_dtype).view(spec.shape)
    x = rng.normal(0, 1, n) * float(rng.choice([1.0, 1e-3, 1e-38]))
    x = np.where(rng.random(n) < 0.3, rng.integers(-8, 9, n) * scale, x)
    x = np.where(rng.random(n) < 0.3, rng.choice(SPECIAL, n), x)
    if not finite:
        x = np.where(rng.random(n) < 0.2, rng.choice([np.nan, np.inf, 1e39, 1e-320], n), x)
    t = torch.from_numpy(x)
    if spec.dtype == "C64":
        return torch.view_as_complex(t.float().view(*spec.shape, 2))
    return t.to(spec.torch_dtype).view(spec.shape)


@st.composite
def based_records(draw) -> Record:
    """Up to six tensors of a base, of any dtype, some of them unused, and up to two new ones, in up to three groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    strip, add = draw(st.sampled_from(["", "m.", "modèle."])), draw(st.sampled_from(["", "net.", "ä"]))
    cast = draw(st.sampled_from(["", "", *FLOATS]))
    dtypes = draw(st.lists(st.sampled_from([*CODED_DTYPES, *CODED_DTYPES, "I64", "BOOL"]), min_size=1, max_size=6))
    scale = bfloat16(float(rng.lognormal(-4, 2)))

    def shape() -> tuple[int, ...]:
        return tuple(rng.integers(0 if rng.random() < 0.1 else 1, 9, rng.integers(0, 4)).tolist())

    held, unused, kinds = {}, set(), {}
    for i, dtype in enumerate(dtypes):
        name = f"{strip}t{rng.integers(20)}.{i}"
        if rng.random() < 0.2:
            name = name if rng.random() < 0.5 else f"0{i}"
            unused.add(name)
        spec = TensorSpec(name, dtype, shape())
        kinds[name] = str(rng.choice(["kept", "based", "based", "constant", "stored", "tied"]))
        held[name] = _values(rng, spec, kinds[name] == "based", scale)
    base = BaseTensors(held, "base.safetensors", "0123456789" * 4 if draw(st.booleans()) else "")
    numbers = tuple(i for i, n in enumerate(base.tensors) if n in unused)
    reference = BaseReference(base.name, base.revision, base.digest, len(held), strip, add, cast, numbers)
    standing = OnBase(reference, base)
    names = [n for n in base.tensors if n not in unused]
    new = [TensorSpec(f"zz{i}", str(rng.choice([*CODED_DTYPES, "I8"])), shape()) for i in range(rng.integers(0, 3))]
    layout = Layout((*standing.layout, *new))
    G = int(rng.integers(1, 4))
    entries: list[Entry] = []
    for i, spec in enumerate(layout):
        kind = kinds[names[i]] if i < len(names) else str(rng.choice(["constant", "stored"]))
        alike = [j for j in range(i) if layout.tensors[j] == replace(spec, name=layout.tensors[j].name)]
        alike = [j for j in alike if not isinstance(entries[j], Tied)]
        s = scale if rng.random() < 0.5 else bfloat16(float(rng.lognormal(-4, 2)))
        if kind == "based" and spec.dtype in CODED_DTYPES and finite(standing.reals(spec.name)):
            entries.append(Coded(s, int(rng.integers(G)), 0.0, True))
        elif kind == "constant" and spec.dtype in CODED_DTYPES:
            entries.append(Coded(s, int(rng.integers(G)), float(rng.choice([0.0, 1.0, -0.5]))))
        elif kind == "tied" and alike:
            entries.append(Tied(alike[0]))
        else:
            entries.append(Stored() if kind == "stored" or spec.name not in standing else Unchanged())
    sizes = group_sizes(layout, tuple(entries), G)
    number = {g: k for k, g in enumerate(g for g in range(G) if sizes[g])}  # empty groups are left out
    entries = [
        (replace(e, group=number[e.group]) if e.group in number else Stored()) if isinstance(e, Coded) else e
        for e in entries
    ]
    seed, groups = draw(st.integers(0, 2**64 - 1)), []
    for g, k in number.items():
        log2_m = int(rng.integers(0, 9))
        K = int(rng.integers(0, min(1 << log2_m, 17)))
        d = int(rng.integers(1, min(sizes[g], -(-sizes[g] >> log2_m) * ((1 << log2_m) - K)) + 1))
        bits = int(rng.integers(2, 9))
        z = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), d).astype(np.int32)
        kind = (HadamardBlocks, ScatteredBlocks)[int(rng.integers(2))]
        groups.append(Group(kind(sizes[g], d, seed, log2_m, K, int(rng.integers(9)) if K else 0, k), bits, z))
    size = sum(s.nbytes for s, e in zip(layout, entries, strict=True) if isinstance(e, Stored))
    stored = rng.integers(0, 2, size).astype(np.uint8).tobytes()
    return with_digest(Record(seed, layout, tuple(groups), tuple(entries), stored, base=standing))
