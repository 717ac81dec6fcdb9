"""Records that tests and golden files are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from subcompress.data.digits import FACTS
from subcompress.expand import digest_of, expand
from subcompress.facts import Facts, Input
from subcompress.layout import CODED_DTYPES, Layout, TensorSpec, raw_bytes
from subcompress.operators import HadamardBlocks
from subcompress.record import Coded, Group, Record, Same, Stored
from subcompress_models import MODELS

GOLDEN = Path(__file__).parent / "golden"
TABLES: dict[str, Any] = json.loads(resources.files("subcompress.format").joinpath("tables.json").read_text("utf-8"))


def with_digest(record: Record) -> Record:
    """The record with the digest of its weights."""
    return replace(record, digest=digest_of(record, expand(record)))


def single_record(D: int, d: int, log2_m: int, K: int, A: int, z: np.ndarray, bits: int = 4, seed: int = 0) -> Record:
    """One tensor `w` of D weights in one group."""
    layout = Layout((TensorSpec("w", "F32", (D,)),))
    group = Group(HadamardBlocks(D, d, seed, log2_m, K, A), bits, z.astype(np.int32))
    return with_digest(Record(seed, layout, (group,), (Coded(0.0078125),)))


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
    entries = (Coded(0.25), Coded(0.125), Stored(), *norms, Coded(2.0**-9, 2, 0.75), Same(0), Same(2))
    stored = np.array([1 - 2j, 0.5j], np.complex64).tobytes()
    rng = np.random.default_rng(2)
    groups = (
        Group(HadamardBlocks(66, 20, 4, 6, 16, 5, group=0), 4, rng.integers(-7, 8, 20).astype(np.int32)),
        Group(HadamardBlocks(48, 9, 4, 4, 0, 0, group=1), 4, rng.integers(-7, 8, 9).astype(np.int32)),
        Group(HadamardBlocks(6, 6, 4, 0, 0, 0, group=2), 9, rng.integers(-255, 256, 6).astype(np.int32)),
    )
    facts = Facts(inputs=(Input("tokens", "I64", (12,)), Input("", "F32", (12, 3))))
    return with_digest(Record(4, layout, groups, entries, stored, facts))


def record_of(module: nn.Module, facts: Facts, seed: int = 5) -> Record:
    """Random weights for a module: its floating tensors in one group of 4-bit coordinates, the others as they are."""
    layout = Layout.of(module.state_dict())
    entries = tuple(Coded(2.0**-4) if spec.dtype in CODED_DTYPES else Stored() for spec in layout)
    D = sum(spec.reals for spec, entry in zip(layout, entries, strict=True) if isinstance(entry, Coded))
    d = min(D, 20)
    z = np.random.default_rng(seed).integers(-8, 8, d).astype(np.int32)
    groups = (Group(HadamardBlocks.sized(D, d, seed, K=min(4, D - 1)), 4, z),) if D else ()
    pairs = zip(module.state_dict().values(), entries, strict=True)
    stored = b"".join(bytes(raw_bytes(tensor)) for tensor, entry in pairs if isinstance(entry, Stored))
    return with_digest(Record(seed, layout, groups, entries, stored, facts))
