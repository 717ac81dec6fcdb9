"""Records that tests and golden files are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.base import BaseReference, BaseTensors, OnBase
from subcompress.data.digits import FACTS
from subcompress.format.facts import Facts, Input
from subcompress.format.record import (
    Coded,
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
from subcompress.operators.forms import FANS, Ramp, Seeded, Table, seeded_scale
from subcompress.rebuild.expand import digest_of, expand
from subcompress.tensors.layout import CODED_DTYPES, DTYPES, Layout, TensorSpec, raw_bytes, torch_dtype
from subcompress.tensors.rounding import rounded
from subcompress_models import MODELS

TABLES: dict[str, Any] = json.loads(resources.files("subcompress.format").joinpath("tables.json").read_text("utf-8"))


def with_digest(record: Record) -> Record:
    """The record with the digest of its weights."""
    return replace(record, digest=digest_of(record, expand(record)))


def single_record(
    D: int,
    d: int,
    log2_m: int,
    K: int,
    A: int,
    z: np.ndarray,
    bits: int = 4,
    seed: int = 0,
    kind: type[HadamardBlocks] = HadamardBlocks,
) -> Record:
    """One tensor `w` of D weights in one group."""
    layout = Layout((TensorSpec("w", "F32", (D,)),))
    group = Group(kind(D, d, seed, log2_m, K, A), bits, z.astype(np.int32))
    return with_digest(Record(seed, layout, (group,), (Coded(0.0078125),)))


def scattered_record() -> Record:
    """Operator 2 in two groups, of a window and of one reading, and operator 1 beside it."""
    layout = Layout(
        tuple(TensorSpec(name, "F32", shape) for name, shape in [("a", (50, 60)), ("b", (7, 41)), ("c", (90,))])
    )
    rng = np.random.default_rng(3)
    groups = (
        Group(ScatteredBlocks(3_000, 40, 2**63 + 9, 8, 16, 5, group=0), 4, rng.integers(-7, 8, 40).astype(np.int32)),
        Group(ScatteredBlocks(287, 90, 2**63 + 9, 5, 3, 2, group=1), 5, rng.integers(-15, 16, 90).astype(np.int32)),
        Group(HadamardBlocks(90, 12, 2**63 + 9, 5, 3, 2, group=2), 3, rng.integers(-3, 4, 12).astype(np.int32)),
    )
    entries = (Coded(2.0**-7), Coded(2.0**-8, 1, 0.5), Coded(2.0**-6, 2))
    return with_digest(Record(2**63 + 9, layout, groups, entries))


def lenet_record(d: int = 300, seed: int = 0, spread: float = 2.5) -> Record:
    """LeNet by name with random coordinates of four bits."""
    layout = Layout.of(MODELS["lenet"]().state_dict())
    z = np.random.default_rng(seed).normal(0, spread, d).round().clip(-7, 7).astype(np.int32)
    group = Group(HadamardBlocks(44_426, d, seed, 10, 16, 7), 4, z)
    record = Record(seed, layout, (group,), tuple(Coded(2.0**-8) for _ in layout), facts=FACTS, test_accuracy=0.5)
    return with_digest(record)


def mixed_record() -> Record:
    """Every feature of the format at once: groups, dtypes, starts, stored tensors, facts and names of its own."""
    tensors = [
        ("stem.weight", "F32", (7, 3)),
        ("stem.bias", "F32", (7,)),
        ("norm.weight", "F16", (7,)),
        ("norm.running_mean", "F32", (7,)),
        ("norm.count", "I64", ()),
        ("head.weight", "BF16", (5, 7)),
        ("head.mask", "BOOL", (3,)),
        ("größe", "F64", (11,)),
        ("empty", "F32", (0, 4)),
        ("void", "I32", (0,)),
    ]
    layout = Layout(tuple(TensorSpec(*t) for t in tensors))
    entries = (
        Coded(0.5),
        Coded(0.5),
        Coded(2.0**-9, group=1, start=1.0),
        Stored(),
        Stored(),
        Coded(0.0078125, group=1),
        Stored(),
        Coded(1.5 * 2.0**-20, start=-0.3333333432674408),
        Coded(0.5),
        Stored(),
    )
    stored = np.linspace(-1, 1, 7, dtype="<f4").tobytes() + (12345).to_bytes(8, "little") + b"\1\0\1"
    rng = np.random.default_rng(1)
    groups = (
        Group(HadamardBlocks(39, 20, 9, 3, 1, 4, group=0), 6, rng.integers(-32, 32, 20).astype(np.int32)),
        Group(HadamardBlocks(42, 10, 9, 5, 0, 0, group=1), 3, rng.integers(-4, 4, 10).astype(np.int32)),
    )
    facts = Facts(input_shape=(3, 8), input_dtype="F32", mean=(0.5, 0.25), labels=("cat", "dög"))
    return with_digest(Record(9, layout, groups, entries, stored, facts))


def tied_record() -> Record:
    """Tied tensors, complex weights, many norms (their tags are deflated), values one by one, several inputs."""
    tensors = [("embed.weight", "F32", (9, 4)), ("filter", "C64", (3, 5)), ("mode", "C64", (2,))]
    tensors += [(f"norms.{i}.weight", "F32", (4,)) for i in range(12)]
    tensors += [("running_mean", "F32", (6,)), ("decoder.weight", "F32", (9, 4)), ("mode_again", "C64", (2,))]
    layout = Layout(tuple(TensorSpec(*t) for t in tensors))
    norms = tuple(Coded(0.0625, 1, 1.0) for _ in range(12))
    entries = (Coded(0.25), Coded(0.125), Stored(), *norms, Coded(2.0**-9, 2, 0.75), Tied(0), Tied(2))
    stored = np.array([1 - 2j, 0.5j], np.complex64).tobytes()
    rng = np.random.default_rng(2)
    groups = (
        Group(HadamardBlocks(66, 20, 4, 6, 16, 5, group=0), 4, rng.integers(-7, 8, 20).astype(np.int32)),
        Group(HadamardBlocks(48, 9, 4, 4, 0, 0, group=1), 4, rng.integers(-7, 8, 9).astype(np.int32)),
        Group(HadamardBlocks(6, 6, 4, 0, 0, 0, group=2), 9, rng.integers(-255, 256, 6).astype(np.int32)),
    )
    facts = Facts(inputs=(Input("tokens", "I64", (12,)), Input("", "F32", (12, 3))))
    return with_digest(Record(4, layout, groups, entries, stored, facts))


def plain_base(tensors: list[tuple[str, str, tuple[int, ...]]], salt: int = 0) -> dict[str, Tensor]:
    """A base whose values are a formula: exact in every dtype but BF16, which rounds them."""
    found = {}
    for k, (name, dtype, shape) in enumerate(tensors, salt):
        spec = TensorSpec(name, dtype, shape)
        whole = (torch.arange(spec.reals) * 7919 + k * 104729) % 2001 - 1000
        if dtype == "C64":
            found[name] = torch.view_as_complex(whole.float().div(1024).view(*shape, 2))
        elif dtype in CODED_DTYPES:
            found[name] = whole.double().div(1024).to(spec.torch_dtype).view(shape)
        else:
            found[name] = (whole % (2 if dtype == "BOOL" else 100)).to(spec.torch_dtype).view(shape)
    return found


def of_bytes(base: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A base as the second decoder takes it."""
    names = {torch_dtype(name): name for name in DTYPES}
    return {n: (names[t.dtype], tuple(t.shape), bytes(raw_bytes(t))) for n, t in base.items()}


def golden_bases() -> dict[str, dict[str, Tensor]]:
    """By the name of a golden file on a base: that base."""
    tensors = [
        ("m.embed", "F32", (9, 4)),
        ("m.norm.count", "I64", ()),
        ("m.norm.w", "F16", (6,)),
        ("m.half", "BF16", (5, 3)),
        ("m.wide", "F64", (7,)),
        ("m.wave", "C64", (2, 3)),
        ("m.ä", "BOOL", (3,)),
        ("pooler", "F32", (4,)),
        ("m.empty", "F32", (0, 2)),
    ]
    based, rounded = plain_base(tensors), plain_base([(f"{n}.w", t, s) for n, t, s in tensors[2:6]], 50)
    based["m.embed"].view(-1)[:4] = torch.tensor([-0.0, 1e-40, -1e-44, 2.0**-126])
    based["m.wide"][:3] = torch.tensor([-0.0, 5e-324, 1e300], dtype=torch.float64)
    based["pooler"][0] = torch.nan
    rounded["m.wide.w"][:3] = torch.tensor([1 + 2.0**-8 + 2.0**-40, torch.nan, 1e300], dtype=torch.float64)
    factored = plain_base(
        [
            ("double", "F64", (3, 5)),
            ("embed", "F32", (7, 5)),
            ("half", "BF16", (6, 4)),
            ("norm", "F32", (6,)),
            ("short", "F16", (3, 8)),
            ("still", "F32", (4, 3)),
            ("wide", "F32", (2, 40_000)),
        ],
        70,
    )
    factored["still"].view(-1)[:4] = torch.tensor([-0.0, 1e-40, -1e-44, 2.0**-126])
    shapes = {"double": (5, 7), "half": (9, 6), "line": (6, 4), "none": (3, 4), "plain": (12, 8), "short": (4, 7)}
    dtypes = {"double": "F64", "half": "BF16", "short": "F16"}
    sketched = plain_base([(n, dtypes.get(n, "F32"), shape) for n, shape in shapes.items()], 90)
    sketched["line"] = torch.outer(torch.arange(6.0), torch.arange(4.0) - 1)
    sketched["none"].zero_()
    sketched["tiny"] = torch.full((2, 3), 1e-40)
    sketched["double"][0, :2] = torch.tensor([1e-300, 5e-324], dtype=torch.float64)
    return {
        "based": based, "rounded": rounded, "ruled-based": based, "factored": factored, "sketched": sketched,
    }  # fmt: skip


def lenet_on(base: dict[str, torch.Tensor]) -> Record:
    """LeNet on a base."""
    held = BaseTensors(base, "base.safetensors")
    standing = OnBase(BaseReference(held.name, "", held.digest, len(base)), held)
    group = Group(HadamardBlocks.sized(44_426, 50, 0, K=0), 4, np.arange(50, dtype=np.int32) % 7 - 3)
    entries = tuple(Coded(2.0**-9, based=True) for _ in standing.layout)
    return with_digest(Record(0, standing.layout, (group,), entries, facts=lenet_record().facts, base=standing))


def based_record() -> Record:
    """Every feature of a file on a base: prefixes, kept, moved, stored, tied, unused and new tensors, two groups."""
    base = BaseTensors(golden_bases()["based"], "hub:org/name", "0123456789abcdef" * 2 + "01234567")
    reference = BaseReference(base.name, base.revision, base.digest, 9, "m.", "net.", "", (8,))
    standing = OnBase(reference, base)  # embed, empty, half, norm.count, norm.w, wave, wide, ä
    new = (TensorSpec("net.tied", "F32", (9, 4)), TensorSpec("head.weight", "F32", (3, 4)))
    entries = (
        Coded(2.0**-9, based=True),
        Unchanged(),
        Coded(2.0**-6, 1, based=True),
        Unchanged(),
        Coded(2.0**-9, 1, based=True),
        Coded(2.0**-9, based=True),
        Coded(2.0**-9, 1, based=True),
        Stored(),
        Tied(0),
        Coded(0.0625, 1, -0.5),
    )
    rng = np.random.default_rng(3)
    groups = (
        Group(HadamardBlocks(48, 12, 6, 4, 0, 0, group=0), 4, rng.integers(-7, 8, 12).astype(np.int32)),
        Group(HadamardBlocks(40, 9, 6, 6, 16, 5, group=1), 5, rng.integers(-15, 16, 9).astype(np.int32)),
    )
    return with_digest(
        Record(6, Layout((*standing.layout, *new)), groups, entries, b"\1\0\1", Facts(labels=("a",)), base=standing)
    )


def ruled_record() -> Record:
    """Every feature of rules without a base: starts, centers, initializers, mixed tensors, equal stored ones."""
    tensors = [
        ("stem.weight", "F32", (12, 5)),
        ("stem.bias", "F32", (12,)),
        ("position.ids", "I64", (4,)),
        ("position.again", "I64", (4,)),
        ("attention.weight", "F32", (24, 8)),
        ("attention.scale", "F16", (24,)),
        ("half", "BF16", (5, 7)),
        ("wide", "F64", (4, 9)),
        ("wave", "C64", (3, 5)),
        ("frozen.zero", "F32", (6,)),
        ("frozen.one", "F16", (6,)),
        ("frozen.ramp", "F64", (11,)),
        ("frozen.seeded", "F64", (3, 7)),
        ("frozen.table", "BF16", (10,)),
        ("tied", "F32", (24, 8)),
        ("again", "F32", (12, 5)),
        ("empty", "F32", (0, 4)),
    ]
    layout = Layout(tuple(TensorSpec(*t) for t in tensors))

    def table(values: list[float], dtype: str) -> Table:
        held = np.array(values, np.float64)
        return Table(
            (rounded(held, DTYPES["BF16"]) if dtype == "BF16" else held.astype(DTYPES[dtype])).tobytes(), dtype
        )

    def initial(number: int, fan_in: int, fan_out: int) -> float:
        return bfloat16(seeded_scale(FANS[number](fan_in, fan_out)))

    odd = [1.0, -0.0, 1e-40, -(2.0**-126), 0.3333333432674408]
    long, short = ((0, 64), (1, 64), (2, 64)), ((3, 1), (0, 2), (1, 3), (2, 1), (0, 4))
    queries = (Coded(0.5, 0, Seeded(initial(1, 8, 24))), Coded(0.25, 0, 0.0), Fixed(Ramp(0.0, 1 / 3, 7)))
    waves = (Coded(0.5, 1, table(odd, "F32")), Fixed(0.0), Fixed(Seeded(0.375, -1.0)), Coded(2.0**-17, 0, 1.0))
    entries = (
        Coded(0.5, 0, Seeded(initial(2, 5, 12))),
        Coded(0.0625, 0, Seeded(initial(1, 5, 12), table(odd, "F32"))),
        Stored(),
        Stored(2),
        Mixed(queries, long),
        Coded(2.0**-9, 1, table([1.0, 6e-8, 65504.0], "F16")),
        Coded(0.015625, 1, Seeded(initial(3, 7, 5), Ramp(-1.0, 0.0625, 9, "BF16"))),
        Coded(0.5, 1, Seeded(initial(4, 9, 4), table([1 / 3, 1e39, 5e-324], "F64"))),
        Mixed(waves, short),
        Fixed(0.0),
        Fixed(1.0),
        Fixed(Ramp(-0.1, 1e-3, 4, "F64")),
        Fixed(Seeded(1.5, table([1 / 3, 1 + 2.0**-40], "F64"))),
        Fixed(table([*odd, -0.1], "BF16")),
        Tied(4),
        Coded(2.0**-16, 0, Seeded(initial(2, 5, 12))),
        Fixed(0.0),
    )
    sizes = group_sizes(layout, entries, 2)
    rng = np.random.default_rng(4)
    groups = (
        Group(HadamardBlocks(sizes[0], 25, 11, 6, 16, 5, group=0), 4, rng.integers(-7, 8, 25).astype(np.int32)),
        Group(HadamardBlocks(sizes[1], 12, 11, 4, 0, 0, group=1), 5, rng.integers(-15, 16, 12).astype(np.int32)),
    )
    return with_digest(Record(11, layout, groups, entries, np.arange(4, dtype="<i8").tobytes()))


def ruled_based_record() -> Record:
    """Rules on a base: kept, moved, stored and tied tensors, and new ones that are mixed and seeded."""
    base = BaseTensors(golden_bases()["ruled-based"], "hub:org/name", "0123456789abcdef" * 2 + "01234567")
    reference = BaseReference(base.name, base.revision, base.digest, 9, "m.", "net.", "", (8,))
    standing = OnBase(reference, base)  # embed, empty, half, norm.count, norm.w, wave, wide, ä
    new = (TensorSpec("head.weight", "F32", (7, 4)), TensorSpec("head.bias", "F16", (7,)))
    items = (Coded(2.0**-9, 0, Seeded(0.0625)), Fixed(Ramp(0.0, 0.5, 3)), Coded(2.0**-9, 0, Seeded(0.0625, 1.0)))
    entries = (
        Coded(2.0**-9, based=True),
        Fixed(0.0),
        Coded(2.0**-11, based=True),
        Unchanged(),
        Coded(2.0**-9, based=True),
        Coded(2.0**-9, based=True),
        Coded(2.0**-9, 0, Ramp(0.1, 0.7, 3, "F64")),
        Stored(),
        Mixed(items, ((0, 9), (1, 2), (2, 3))),
        Fixed(Seeded(0.0625)),
    )
    (D,) = group_sizes(Layout((*standing.layout, *new)), entries, 1)
    z = np.random.default_rng(5).integers(-7, 8, 12).astype(np.int32)
    group = Group(HadamardBlocks(D, 12, 6, 4, 0, 0), 4, z)
    return with_digest(Record(6, Layout((*standing.layout, *new)), (group,), entries, b"\1\0\1", base=standing))


def rounded_record() -> Record:
    """Floats of four dtypes as BF16, two of them where they are in the base; every entry a value of its own."""
    base = BaseTensors(golden_bases()["rounded"], "net.pt")
    standing = OnBase(BaseReference(base.name, "", base.digest, 4, dtype="BF16"), base)  # half, norm, wave, wide
    entries = (Coded(2.0**-7, based=True), Coded(2.0**-10, based=True), Unchanged(), Unchanged())
    z = np.arange(21, dtype=np.int32) % 7 - 3
    group = Group(HadamardBlocks(21, 21, 1, 0, 0, 0), 3, z)
    return with_digest(Record(1, standing.layout, (group,), entries, base=standing))


def factored_record() -> Record:
    """Factors of four dtypes on a base: random, chosen and fixed ones, a tensor twice as wide as a tile is high, and a
    tied one."""
    base = BaseTensors(golden_bases()["factored"], "hub:org/name", "0123456789abcdef" * 2 + "01234567")
    standing = OnBase(BaseReference(base.name, base.revision, base.digest, len(base.layout)), base)
    table = Table(np.array([1.0, -0.0, 1e-40, 1 / 3], "<f4").tobytes(), "F32")
    random, zero = Coded(2.0**-9, 0, Seeded(0.0625)), Coded(2.0**-7)
    entries = {
        "double": Factored(2, (Coded(2.0**-9, 0, table), zero)),
        "embed": Factored(4, (random, zero)),
        "half": Factored(3, (zero, random)),
        "norm": Coded(2.0**-8, based=True),
        "short": Factored(1, (Fixed(Ramp(-1.0, 0.25, 3)), Coded(2.0**-3, 0, Seeded(0.5, 1.0)))),
        "still": Factored(2, (random, Fixed(0.0))),
        "wide": Factored(2, (replace(random, scale=2.0**-10), zero)),
    }
    new = (TensorSpec("head", "F32", (9, 4)), TensorSpec("tied", "F32", (7, 5)))
    layout = Layout((*standing.layout, *new))
    chosen = (*entries.values(), Coded(2.0**-6, 0, Seeded(0.125)), Tied(1))
    (D,) = group_sizes(layout, chosen, 1)
    group = Group(
        HadamardBlocks(D, 60, 13, 7, 16, 5), 4, np.random.default_rng(13).integers(-7, 8, 60).astype(np.int32)
    )
    return with_digest(Record(13, layout, (group,), chosen, base=standing))


def sketched_record() -> Record:
    """What is between directions of matrices of four dtypes, of zeros, of one direction, and of subnormal values."""
    base = BaseTensors(golden_bases()["sketched"], "base")
    standing = OnBase(BaseReference(base.name, base.revision, base.digest, len(base.layout)), base)
    zero, random = Coded(2.0**-6), Coded(2.0**-7, 0, Seeded(0.0625))
    ranks = {"double": 3, "half": 4, "line": 2, "none": 1, "plain": 5, "short": 2, "tiny": 1}
    entries = tuple(Factored(ranks[s.name], (random if s.dtype == "F16" else zero,), True) for s in standing.layout)
    (D,) = group_sizes(standing.layout, entries, 1)
    z = np.random.default_rng(17).integers(-7, 8, 20).astype(np.int32)
    group = Group(HadamardBlocks(D, 20, 17, 5, 4, 3), 4, z)
    return with_digest(Record(17, standing.layout, (group,), entries, base=standing))


def record_of(module: nn.Module, facts: Facts, seed: int = 5) -> Record:
    """Random weights for a module: its floating tensors in one group of 4-bit coordinates, the others as they are, tied
    ones once."""
    state = module.state_dict(keep_vars=True)
    layout, first = Layout.of(state), {}
    ties = [first.setdefault(id(tensor), i) for i, tensor in enumerate(state.values())]
    entries = tuple(
        Tied(ties[i]) if ties[i] != i else Coded(2.0**-4) if spec.dtype in CODED_DTYPES else Stored()
        for i, spec in enumerate(layout)
    )
    D = sum(spec.reals for spec, entry in zip(layout, entries, strict=True) if isinstance(entry, Coded))
    d = min(D, 20)
    z = np.random.default_rng(seed).integers(-8, 8, d).astype(np.int32)
    groups = (Group(HadamardBlocks.sized(D, d, seed, K=min(4, D - 1)), 4, z),) if D else ()
    pairs = zip(module.state_dict().values(), entries, strict=True)
    stored = b"".join(bytes(raw_bytes(tensor)) for tensor, entry in pairs if isinstance(entry, Stored))
    return with_digest(Record(seed, layout, groups, entries, stored, facts))
