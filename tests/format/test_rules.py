"""Tensor lists of rules (kinds 4 and 5 of docs/FORMAT.md): both decoders, whatever rebuilds, and forgeries."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from drawn_rules import made, ruled_records
from hypothesis import given, settings
from records import TABLES, of_bytes, with_digest

from subcompress import format
from subcompress.format import rules
from subcompress.format.record import (
    Coded,
    Fixed,
    Group,
    Mixed,
    Record,
    bfloat16,
    group_sizes,
)
from subcompress.operators import HadamardBlocks
from subcompress.operators.forms import FANS, Form, Ramp, Seeded, Table
from subcompress.rebuild.arrays import rebuild
from subcompress.rebuild.backends import available
from subcompress.rebuild.expand import expand, expand_checked
from subcompress.rebuild.filling import Filling
from subcompress.rebuild.streaming import stream
from subcompress.tensors.digest import CHUNK
from subcompress.tensors.layout import Layout, TensorSpec, raw_bytes


def agree(record: Record) -> None:
    """Every decoder, backend and way to rebuild gives the same tensors, and the file is written the same way again."""
    data = format.to_bytes(record)
    base = record.base.base.tensors if record.base is not None else None
    found, ledger = format.from_bytes(data, base)
    assert sum(ledger.values()) == len(data)
    assert (found.layout, found.entries, found.stored) == (record.layout, record.entries, record.stored)
    assert format.to_bytes(found) == data
    decoded = oracle.decode(data, TABLES, base and of_bytes(base))
    truth = {name: values for name, (_, _, values) in decoded.tensors.items()}
    assert (list(truth), decoded.digest) == ([spec.name for spec in record.layout], record.digest)
    for backend in available():
        assert {n: bytes(raw_bytes(t)) for n, t in expand_checked(found, backend).items()} == truth
        assert stream(found, backend=backend) == record.digest
    some = list(truth)[::2]
    assert {n: bytes(raw_bytes(t)) for n, t in rebuild(found, some, check=False).items()} == {n: truth[n] for n in some}


@settings(max_examples=30, deadline=None)
@given(ruled_records())
def test_both_decoders_and_everything_that_rebuilds_agree(record):
    agree(record)


LARGE = CHUNK // 4 * 5 // 4 + 7
"""Values of float32 that reach into a second leaf."""


LONG, SHORT = ((0, LARGE // 3), (1, 5), (2, LARGE // 2)), ((2, 3), (0, 1), (1, 2), (0, 5)) * 20


@pytest.mark.parametrize(
    ("dtype", "runs"),
    [
        ("F32", LONG),
        *(pytest.param(dtype, runs, marks=pytest.mark.slow) for dtype in ("BF16", "C64") for runs in (LONG, SHORT)),
        pytest.param("F32", SHORT, marks=pytest.mark.slow),
    ],
)
def test_leaves_of_mixed_tensors_are_made_alone(dtype, runs):
    """Ranges that begin in the middle of a run."""
    real = "F32" if dtype == "C64" else dtype
    size = {"F32": LARGE, "BF16": 2 * LARGE, "C64": LARGE // 2}[dtype]
    layout = Layout((TensorSpec("a", "F32", (3, 5)), TensorSpec("w", dtype, (size,)), TensorSpec("v", "F32", (LARGE,))))
    table = Table(np.linspace(-1, 1, 777).astype("f2" if dtype == "BF16" else "f4").tobytes(), real)
    items = (Coded(0.5, 0, Seeded(0.25, Ramp(0.0, 0.001, 1001, real))), Fixed(table), Coded(0.125, 1, table))
    last = Fixed(Seeded(bfloat16(0.01), 0.5))
    entries = (Coded(0.5), Mixed(items, runs), last)
    sizes = group_sizes(layout, entries, 2)
    groups = tuple(
        Group(HadamardBlocks.sized(D, 50, 3, group=g), 4, np.arange(50, dtype=np.int32) % 15 - 7)
        for g, D in enumerate(sizes)
    )
    agree(with_digest(Record(3, layout, groups, entries)))


def test_parts_of_a_tensor_are_those_of_the_whole():
    """Any range that is asked for."""
    rng = np.random.default_rng(4)
    layout = Layout((TensorSpec("a", "F16", (40, 3)), TensorSpec("b", "F64", (333,)), TensorSpec("c", "C64", (90,))))
    backend = available()[0]
    from subcompress.rebuild.backends import backend_of

    chosen = backend_of(backend)
    for _ in range(20):
        record = made(rng, int(rng.integers(99)), layout, None)
        truth = {n: chosen.memory.reals(chosen.memory.of(t)) for n, t in expand(record, backend).items()}
        coordinates = [chosen.memory.of(g.coordinates) for g in record.groups]
        for i, spec in enumerate(layout):
            if not record.pieces[i]:
                continue
            lo = int(rng.integers(spec.reals))
            n = int(rng.integers(1, spec.reals - lo + 1))
            filling, out = Filling(record, chosen, coordinates), chosen.memory.empty((n,), spec.real_dtype)
            filling.add(i, lo, out)
            filling.write()
            assert raw_bytes(out) == raw_bytes(truth[spec.name][lo : lo + n])


def test_rules_are_said_once():
    """A thousand tensors of a dozen kinds take a few hundred bytes."""
    layout = Layout(tuple(TensorSpec(f"layers.{i}.w", "F32", (8, 4)) for i in range(1_000)))
    starts: list[Form] = [0.0, 1.0, Ramp(0.0, 1.0, 8), Seeded(rules._Fans(layout).scale(2, 0) or 0.0)]
    entries = tuple(Coded(2.0 ** -(i % 3), 0, starts[i % 4]) for i in range(1_000))
    group = Group(HadamardBlocks(32_000, 5, 0, 6, 0, 0), 4, np.arange(5, dtype=np.int32))
    assert len(format.to_bytes(with_digest(Record(0, layout, (group,), entries)))) < 500


@pytest.mark.parametrize("number", FANS)
def test_an_initializer_has_its_scale_in_a_byte(number):
    layout = Layout((TensorSpec("w", "F32", (8, 4, 3)), TensorSpec("b", "F32", (8,))))
    scale = rules._Fans(layout).scale(number, 1)
    record = with_digest(Record(0, layout, (), (Fixed(Seeded(scale)), Fixed(Seeded(scale)))))
    other = with_digest(Record(0, layout, (), (Fixed(Seeded(1.5)), Fixed(Seeded(1.5)))))
    assert len(format.to_bytes(record)) + 2 == len(format.to_bytes(other))
    std = expand(record)["w"].std().item()
    variance = {1: 1 / 36, 2: 2 / 12, 3: 2 / 36, 4: 1 / 12}[number]
    assert std == pytest.approx(variance**0.5, rel=0.2)
