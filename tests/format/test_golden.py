"""Golden files: whoever changes what they expand to changes the format version."""

import hashlib
import json

import oracle
import pytest
import safetensors
from make_golden import tensor_digests
from places import GOLDEN
from records import TABLES, golden_bases, of_bytes

from subcompress import format
from subcompress.operators import EXACT
from subcompress.rebuild.backends import available

TRUTH = json.loads((GOLDEN / "golden.json").read_text("utf-8"))
BASES = golden_bases()


@pytest.mark.parametrize("name", TRUTH)
def test_files_are_as_committed(name):
    data = (GOLDEN / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == TRUTH[name]["file"]


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("name", TRUTH)
def test_every_backend_rebuilds_them(name, backend):
    record, _ = format.read(GOLDEN / f"{name}.safetensors", BASES.get(name))
    assert tensor_digests(record, backend) == TRUTH[name]["tensors"]


@pytest.mark.parametrize("name", TRUTH)
def test_the_second_decoder_rebuilds_them(name):
    data, base = (GOLDEN / f"{name}.safetensors").read_bytes(), BASES.get(name)
    decoded = oracle.decode(data, TABLES, base and of_bytes(base))
    found = {key: hashlib.sha256(raw).hexdigest() for key, (_, _, raw) in decoded.tensors.items()}
    assert found == TRUTH[name]["tensors"]


@pytest.mark.parametrize("name", TRUTH)
def test_reading_and_writing_gives_the_same_file(name):
    data = (GOLDEN / f"{name}.safetensors").read_bytes()
    assert format.to_bytes(format.from_bytes(data, BASES.get(name))[0]) == data


@pytest.mark.parametrize("name", TRUTH)
def test_safetensors_reads_the_shell(name):
    with safetensors.safe_open(GOLDEN / f"{name}.safetensors", "numpy") as f:
        assert list(f.keys()) == ["z"]
        assert bytes(f.get_tensor("z"))[:3] == (b"SC\2" if name in ("factored", "sketched") else b"SC\1")


def test_they_hold_what_the_format_can():
    groups = [g for name in TRUTH for g in format.contents(GOLDEN / f"{name}.safetensors").groups]
    assert any(not g.coordinates.any() for g in groups)
    assert any(g.operator.d == 1 for g in groups)
    assert any(g.operator.d > g.operator.m for g in groups)
    assert any(g.operator.D % 2 for g in groups)
    assert any(g.operator.m > g.operator.D for g in groups)
    assert any(g.operator.group == 1 for g in groups)
    assert {type(g.operator) for g in groups} == set(EXACT.values())
