"""info and what the terminal shows of a file: right numbers, in bounded time, and nothing that steers the terminal."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from commands import cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import based_record, golden_bases, lenet_record, single_record, tied_record, with_digest
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.errors import printable
from subcompress.format.facts import Facts, Input
from subcompress.format.record import Coded, Group, Record
from subcompress.onnx import runtime
from subcompress.onnx.tracing import MAX_EXAMPLE, example_inputs
from subcompress.operators import HadamardBlocks
from subcompress.remote.downloads import known_settings
from subcompress.tensors.layout import Layout, TensorSpec

# Anything but surrogates, which no name has, and what names must not have.
NAMES = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32), min_size=1, max_size=12)
STEERING = "\x7f\x85\x9b\x9d\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\U000e0001"


def shows_nothing_but_text(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text if c not in "\n\t")


def refused(call, *args) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args)
    return str(error.value)


# --- numbers ---


def test_tied_tensors_are_counted_once(tmp_path):
    path = tmp_path / "tied.safetensors"
    format.save(record := tied_record(), path)
    found = subcompress.info(path)
    entries = dict(zip((s.name for s in record.layout), record.entries, strict=True))
    again = sum(s.nbytes for s in record.layout if type(entries[s.name]).__name__ == "Tied")
    assert again > 0
    assert found["dense_bytes"] - found["distinct_bytes"] == again
    ratio = found["distinct_bytes"] / found["file_bytes"]
    assert f"for {found['distinct_bytes']} of dense weights, {ratio:.0f} times smaller" in cli("info", path).stdout


def test_bits_a_coordinate_are_those_of_trained_ones(tmp_path):
    """Beside statistics of twelve bits, which take most of the bytes."""
    rng = np.random.default_rng(0)
    layout = Layout((TensorSpec("w", "F32", (4_000,)), TensorSpec("mean", "F32", (900,))))
    trained = Group(HadamardBlocks.sized(4_000, 300, 0), 4, rng.integers(-8, 8, 300).astype(np.int32))
    measured = Group(HadamardBlocks.sized(900, 900, 0, group=1), 12, rng.integers(-2048, 2048, 900).astype(np.int32))
    record = with_digest(Record(0, layout, (trained, measured), (Coded(0.0078125), Coded(0.0078125, 1))))
    format.save(record, tmp_path / "net.safetensors")
    found = subcompress.info(tmp_path / "net.safetensors")
    assert found["d"] == 300
    assert 4 < found["bits_per_coordinate"] < 4.4
    shown = cli("info", tmp_path / "net.safetensors").stdout
    assert f"({found['bits_per_coordinate']:.2f} bits per trained coordinate)" in shown


# --- what a file may ask of tracing ---


@pytest.mark.parametrize(
    "facts",
    [
        Facts((1, 8_192, 8_192)),
        Facts((0,) * 16),
        Facts((1, 8_192, 8_192), "I8"),
        Facts(inputs=tuple(Input(f"x{i}", "F32", (1 << 20,)) for i in range(64))),
        Facts(inputs=(Input("x", "I64", (0,) * 12),)),
    ],
)
def test_examples_are_bounded_before_they_are_made(facts):
    with pytest.raises(SubcompressError, match=f"inputs of at most {MAX_EXAMPLE} bytes"):
        example_inputs(facts, 3, 8)


def test_a_file_that_asks_for_a_large_example_is_not_traced(tmp_path):
    format.save(replace(lenet_record(), facts=Facts((1, 8_192, 8_192))), tmp_path / "net.safetensors")
    out = tmp_path / "net.onnx"
    result = cli("unpack", tmp_path / "net.safetensors", "--model", "lenet", "-o", out)
    assert result.exit_code == 1
    assert "[1, 8192, 8192] take 536870912: unpack to .safetensors" in result.stderr
    assert not out.exists()


def test_usual_examples_are_made():
    for facts in (Facts((3, 1_024, 1_024)), Facts((16, 3, 224, 224)), Facts((0, 768)), Facts((0, 0, 3))):
        assert example_inputs(facts, 1, 8)["input_0" if facts.inputs else "input"].nbytes <= MAX_EXAMPLE


# --- what reaches the terminal ---


@given(st.text(st.characters(), max_size=20))
def test_what_is_printed_is_text(text):
    assert shows_nothing_but_text(printable(text))
    assert printable(printable(text)) == printable(text)
    assert shows_nothing_but_text(str(SubcompressError(text)))


def test_letters_of_any_language_stay():
    text = "größe 重み שלום é 👍🏽\tx\n"
    assert printable(text) == text
    assert printable("a\x9bb\u202ec\u2028d\r\x1b[0m") == "a\\x9bb\\u202ec\\u2028d\\r\\x1b[0m"


@given(NAMES, NAMES, st.sampled_from(STEERING))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_of_a_file_steers_the_terminal(tmp_path, name, other, mark):
    """Of tensors, a base, labels and inputs, wherever a command prints them."""
    name = f"{name}{mark}"
    plain = single_record(300, 40, 6, 0, 0, np.zeros(40))
    specs = (TensorSpec(name, "F32", (300,)),)
    facts = Facts(labels=(name, other), inputs=(Input(name, "F32", (300,)),))
    path, dense = tmp_path / "net.safetensors", tmp_path / "dense.safetensors"
    format.save(with_digest(replace(plain, layout=Layout(specs), facts=facts)), path)
    based = based_record()
    reference = replace(based.base.reference, name=name)
    format.save(replace(based, base=replace(based.base, reference=reference)), tmp_path / "based.safetensors")
    safetensors.torch.save_file(golden_bases()["based"], tmp_path / "base.safetensors")
    commands = [
        ["info", path],
        ["info", path, "--json"],
        ["unpack", path, "-o", dense],
        ["unpack", path, "--model", "lenet", "-o", tmp_path / "net.onnx"],
        ["info", tmp_path / "based.safetensors"],
        ["unpack", tmp_path / "based.safetensors", "-o", dense],
        ["unpack", tmp_path / "based.safetensors", "--base", dense, "-o", tmp_path / "full.safetensors"],
    ]
    for command in commands:
        result = cli(*command)
        assert shows_nothing_but_text(result.stdout + result.stderr), command


# --- what a repository says of itself ---


class Small(nn.Module, subcompress.HubMixin):
    """A network that takes all that its configuration says."""

    def __init__(self, width: int = 300, **others: object) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))


class Plain(nn.Module, subcompress.HubMixin):
    """One that takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(300))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"self": 1}', "sets self"),
        (b'{"model_id": "x"}', "sets model_id"),
        (b'{"token": 1}', "sets token"),
        ('{"width": 300}'.encode("utf-16"), "not a JSON object in UTF-8"),
        ('{"width": 300}'.encode("utf-8-sig"), "not a JSON object in UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b'{"width": "x"}', "Small cannot be made with width, as config.json or the call has it (TypeError"),
        (b'{"width": 301}', "the file holds w F32 [300]"),
    ],
)
def test_configurations_that_make_no_network(tmp_path, text, words):
    format.save(single_record(300, 40, 6, 0, 0, np.zeros(40)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text)
    assert words in refused(Small.from_pretrained, tmp_path)
    if not text.startswith((b'{"w', b'{"m', b'{"t')):
        assert words.partition(" ")[0] in refused(Plain.from_pretrained, tmp_path)
    assert known_settings(text) == {}


def test_configurations_of_one_that_takes_nothing(tmp_path):
    format.save(single_record(300, 40, 6, 0, 0, np.zeros(40)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'{"model_id": 3, "token": 4, "width": []}')
    assert Plain.from_pretrained(tmp_path).w.shape == (300,)


# --- what a graph says of itself ---


@pytest.mark.parametrize(
    "needs", [">=²", ">=" + "9" * 5_000, ">=1.²", "\u0661.\u0662", ">=1.", "", ">>==9.9", ">=\x9b"]
)
def test_requirements_that_are_none_are_passed_over(needs):
    """What a graph that does not open says it needs: the reason is ONNX Runtime's own."""
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    model.metadata_props.add(key="onnxruntime", value=needs)
    with pytest.raises(SubcompressError, match="cannot open this graph"):
        runtime.open_graph(model.SerializeToString())


def test_a_requirement_above_this_runtime_is_said():
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    model.metadata_props.add(key="onnxruntime", value=">=99.1")
    with pytest.raises(SubcompressError, match=r"needs onnxruntime >=99.1"):
        runtime.open_graph(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "words"), [("run.json", "make one with subcompress pack {} -o FILE"), ("x", "name the file")]
)
def test_a_folder_is_no_packed_file(tmp_path, name, words):
    (tmp_path / name).write_text("")
    for command in (("info",), ("unpack", "-o", tmp_path / "net.onnx")):
        found = cli(*command, tmp_path)
        assert found.stderr == f"error: {tmp_path} is a folder, not a packed file: {words.format(tmp_path)}\n"


@pytest.mark.parametrize(
    ("name", "then"), [("net.PT", ""), ("net.onnx", ", then subcompress unpack net.safetensors -o net.onnx")]
)
def test_pack_refuses_names_of_other_formats(name, then):
    line = f"pack writes a .safetensors file; got the name {name}: give subcompress pack run -o net.safetensors{then}"
    assert cli("pack", "run", "-o", name).stderr == f"error: {line}\n"
