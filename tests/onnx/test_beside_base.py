"""Graphs beside their base: the base's tensors are read where its own file holds them, what moves is computed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from beside import LEVELS, Net, based_file, beside, every_weight, weights_of
from forged_bases import refusal
from safetensors.torch import save_file

import subcompress
from subcompress import format
from subcompress.api.unpack import place_of
from subcompress.onnx.outside import FILES, check_outside
from subcompress.onnx.runtime import open_graph
from subcompress.serving.engines import external_values
from subcompress_cli.unpack import _beside as beside_lines


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """A graph beside its base, in a folder of its own, and the names of its weights."""
    return beside(tmp_path_factory.mktemp("beside"))


def copied(made: dict[str, Any], folder: Path) -> Path:
    """The graph beside a copy of the base, which may be changed."""
    return shutil.copytree(made["graph"].parent, folder / "copy") / made["graph"].name


def edited(path: Path, change: Any) -> Path:
    """The graph with a change of its model."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_of_kilobytes_computes_what_the_file_says(made):
    graph, module = made["graph"], made["module"]
    assert graph.name == "tune.onnx"
    assert graph.stat().st_size < made["file"].stat().st_size + 8_000
    x = torch.randint(40, (3, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = subcompress.load(made["file"], module, base=made["base"])(x)
    for session in (onnxruntime.InferenceSession(graph), subcompress.Session(graph)):
        run = session.run(None, {"input": x.numpy()})[0] if hasattr(session, "run") else session(x)
        np.testing.assert_allclose(run, expected, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_every_weight_is_the_files_bit_for_bit(made, level, tmp_path):
    assert every_weight(made, tmp_path, level)


def test_it_reads_the_base_where_the_file_holds_it(made):
    """Offsets and lengths are those of the file's header; what is kept is not in the graph."""
    data = (made["graph"].parent / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:begin])
    places = {
        (begin + t["data_offsets"][0], t["data_offsets"][1] - t["data_offsets"][0]): n
        for n, t in table.items()
        if n != "__metadata__"
    }
    read = []
    for tensor in onnx.load(made["graph"], load_external_data=False).graph.initializer:
        entry = {e.key: e.value for e in tensor.external_data}
        if entry:
            assert entry["location"] == "model.safetensors"
            read.append(places[int(entry["offset"]), int(entry["length"])])
    assert sorted(read) == sorted(n for n in table if n != "__metadata__")


def test_products_read_weights_as_they_lie(made):
    """A transposition would be folded to a copy of the weight in every session."""
    kinds = [node.op_type for node in onnx.load(made["graph"], load_external_data=False).graph.node]
    assert kinds.count("Gemm") == 3
    assert "MatMul" in kinds  # of the unfolding
    model = onnx.load(made["graph"], load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.external_data}
    assert not [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in outside]


def test_the_metadata_say_which_base_and_how_to_check_it(made):
    facts = {p.key: p.value for p in onnx.load(made["graph"], load_external_data=False).metadata_props}
    digest = hashlib.sha256((made["graph"].parent / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(facts[FILES]) == {"model.safetensors": digest}
    assert facts["base"] == "base"
    assert facts["weights_digest"] == made["record"].digest.hex()


def test_the_base_is_linked_and_several_graphs_share_it(made, tmp_path):
    """The Hub's cache has a symbolic link, which ONNX Runtime refuses: its target is linked."""
    base = made["graph"].parent / "model.safetensors"
    assert os.path.samefile(base, made["base"])
    cache = tmp_path / "models--o--n"
    snapshot = cache / "snapshots" / "c"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(made["base"], cache / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    out = tmp_path / "out"
    out.mkdir()
    with made["placing"]({"model.safetensors": snapshot / "model.safetensors"}, out) as how:
        assert how == {"model.safetensors": "hard link"}
    assert not (out / "model.safetensors").is_symlink()
    with made["placing"]({"model.safetensors": made["base"]}, out) as how:
        assert how == {"model.safetensors": "there already"}
    shutil.copy(made["graph"], out / "other.onnx")
    open_graph(out / "other.onnx")
    shutil.copy(made["graph"], snapshot / "own.onnx")
    assert "cannot open" in refusal(open_graph, snapshot / "own.onnx")
    assert "a symbolic link to another folder" in refusal(
        made["placing"]({"model.safetensors": made["base"]}, snapshot).__enter__
    )


def test_where_links_are_impossible_the_base_is_copied(made, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    with made["placing"]({"model.safetensors": made["base"]}, tmp_path) as how:
        assert how == {"model.safetensors": "copy"}
    assert (tmp_path / "model.safetensors").read_bytes() == made["base"].read_bytes()


def test_a_failure_leaves_nothing_behind(made, tmp_path):
    with pytest.raises(RuntimeError), made["placing"]({"model.safetensors": made["base"]}, tmp_path):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.safetensors").write_bytes(b"another")
    said = refusal(made["placing"]({"model.safetensors": made["base"]}, tmp_path).__enter__)
    assert "already exists and is not the base's" in said
    assert (tmp_path / "model.safetensors").read_bytes() == b"another"


def test_a_base_that_changed_is_refused(made, tmp_path):
    graph = copied(made, tmp_path)
    check_outside(graph)
    base = graph.parent / "model.safetensors"
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.unlink()
    base.write_bytes(data)
    said = refusal(subcompress.Session, graph)
    assert "model.safetensors has changed since tune.onnx was made beside it" in said
    assert "put the file of base there" in said
    base.unlink()
    assert "which cannot be read (No such file" in refusal(subcompress.Session, graph)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "C:b"])
def test_a_place_outside_the_folder_is_refused(made, tmp_path, place):
    """Releases of ONNX Runtime up to 1.20 read it."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(e for e in tensor.external_data if e.key == "location").value = place

    graph = edited(copied(made, tmp_path), change)
    for read in (open_graph, external_values):  # the server reads such files itself
        said = refusal(read, graph)
        assert f"a graph may read weights only from its own folder, but {tmp_path}" in said
        assert repr(place) in said


def test_a_place_within_a_node_is_seen(made, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        value = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        value.external_data.add(key="location", value="../x")
        constant = onnx.helper.make_node("Constant", [], ["x"], value=value)
        branch = onnx.helper.make_graph([constant], "b", [], [onnx.helper.make_tensor_value_info("x", 1, None)])
        taken = onnx.helper.make_tensor("t", onnx.TensorProto.BOOL, [], [True])
        model.graph.initializer.append(taken)
        model.graph.node.append(onnx.helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch))

    assert "'../x'" in refusal(open_graph, edited(copied(made, tmp_path), change))


@pytest.mark.parametrize("value", ["[]", "{", '{"../x": "0"}', '{"a": 1}'])
def test_damaged_metadata_are_refused(made, tmp_path, value):
    def change(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == FILES).value = value

    said = refusal(open_graph, edited(copied(made, tmp_path), change))
    assert "are damaged" in said or "'../x'" in said


def test_a_base_that_is_no_safetensors_file_is_refused_before_anything_is_traced(made, tmp_path):
    state = made["start"]
    torch.save(state, tmp_path / "base.bin")
    for source in (tmp_path / "base.bin", state):
        said = refusal(unpack, made, tmp_path / "out", source)
        assert "was given in another way (a file of torch.save, or tensors in memory)" in said
        assert "which keeps the digest" in said
    assert not (tmp_path / "out").exists()


def unpack(made: dict[str, Any], out: Path, base: Any, module: Any = None) -> Path:
    return subcompress.unpack(made["file"], out, module or made["module"], base=base, self_unfolding=True)


def test_rows_that_the_base_lacks_are_refused(tmp_path):
    base = tmp_path / "model.safetensors"
    save_file({n: t[:-2] if n == "table.weight" else t for n, t in Net().state_dict().items()}, base)
    file = based_file(Net(), base, tmp_path / "tune.safetensors")
    assert format.parse(file.read_bytes()).base.changes.rows
    said = refusal(subcompress.unpack, file, tmp_path / "out", Net(), base=base, self_unfolding=True)
    assert "cannot read table.weight of base directly from the file, because the network has more rows of it" in said


def test_a_base_in_shards(made, tmp_path):
    state = list(made["start"].items())
    parts = {"model-00001-of-00002.safetensors": dict(state[:3]), "model-00002-of-00002.safetensors": dict(state[3:])}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    table = {n: name for name, tensors in parts.items() for n in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    graph = unpack(made, tmp_path / "out", tmp_path)
    assert {path.name for path in graph.parent.iterdir()} == {*parts, graph.name}
    facts = {p.key: p.value for p in onnx.load(graph, load_external_data=False).metadata_props}
    assert json.loads(facts[FILES]).keys() == parts.keys()
    open_graph(graph)


@pytest.mark.parametrize("own", [torch.bfloat16, torch.float64])
def test_a_base_of_another_dtype_is_converted_when_a_session_starts(own, tmp_path):
    base = tmp_path / "model.safetensors"
    save_file({n: t.to(own) for n, t in Net().state_dict().items()}, base)
    found = beside(tmp_path / "out", base)
    assert every_weight(found, tmp_path, "ORT_ENABLE_ALL")
    assert found["told"]["converted_bytes"] == sum(t.nbytes for t in found["start"].values())


def test_small_values_of_a_base_are_zero_where_something_is_added(tmp_path):
    """docs/FORMAT.md, section 10."""
    net = Net()
    with torch.no_grad():
        net.norm.bias[:4] = torch.tensor([1e-40, -1e-40, -0.0, 1e-37])
    base = tmp_path / "model.safetensors"
    save_file(net.state_dict(), base)
    found = beside(tmp_path / "out", base)
    assert every_weight(found, tmp_path, "ORT_DISABLE_ALL")
    assert weights_of(found, tmp_path, "ORT_ENABLE_ALL")


@pytest.mark.parametrize(
    ("output", "words", "place"),
    [
        ("there", {"self_unfolding": True}, "there/net.onnx"),
        ("new", {"self_unfolding": True}, "new/net.onnx"),
        ("new", {"format": "self-unfolding"}, "new/net.onnx"),
        ("own.onnx", {"self_unfolding": True}, "own.onnx"),
        ("there", {"format": "transformers", "self_unfolding": True}, "there"),
        ("there", {}, "there"),
    ],
)
def test_a_graph_in_a_folder_is_called_as_its_file(tmp_path, output, words, place):
    (tmp_path / "there").mkdir()
    assert place_of("runs/net.safetensors", tmp_path / output, **words) == tmp_path / place


def test_the_command_says_what_lies_beside_a_graph():
    files = [{"name": "model.safetensors", "bytes": 90, "placed": "hard link"}]
    lines = beside_lines(Path("graphs/net.onnx"), {"base_files": files, "converted_bytes": 7})
    assert lines[0] == "graphs/model.safetensors: the base, 90 bytes, hard link"
    assert lines[1].startswith("at its start, a session converts 7 bytes of the base to the network's dtype")
    assert beside_lines(Path("net.onnx"), {}) == []
