"""`export --triton-repo`: folders, configurations, the Python model, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml
from commands import cli
from onnx import TensorProto, helper
from places import ROOT
from records import lenet_on, mixed_record
from triton_files import graph, parsed

import subcompress
from subcompress import SubcompressError, format
from subcompress.serving import triton
from subcompress.serving.triton import Source, configuration, export, is_own_export
from subcompress.support import files
from subcompress.support.files import atomic_folder
from subcompress_models import MODELS


def error(*args: object) -> str:
    result = cli(*args)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    return result.stderr


def config(model: onnx.ModelProto, backend: str = "onnxruntime", max_batch: int = 64) -> Any:
    found = max_batch if triton.has_batch_axis(model.graph) else 0
    return parsed(configuration(Source(Path("x.onnx"), "x"), model.graph, backend, found))


def test_a_model_repository(place):
    result = cli("export", "net.safetensors", "--triton-repo", "models")
    assert result.exit_code == 0, result.output
    sizes = {p.relative_to("models").as_posix(): p.stat().st_size for p in Path("models").rglob("*") if p.is_file()}
    assert sizes.keys() == {"net/config.pbtxt", "net/1/model.onnx"}
    assert result.stdout == f"models/net: {sum(sizes.values())} bytes, requests joined up to 64\n"
    assert sum(sizes.values()) < 5_000
    assert Path("models/net/1/model.onnx").read_bytes() == Path("net.onnx").read_bytes()
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []
    found = parsed(Path("models/net/config.pbtxt").read_text())
    assert (found.name, found.backend, found.max_batch_size) == ("net", "onnxruntime", 64)
    assert [(i.name, i.data_type, list(i.dims)) for i in found.input] == [("input", 11, [1, 28, 28])]
    assert [(o.name, o.data_type, list(o.dims)) for o in found.output] == [("output", 11, [10])]
    assert found.HasField("dynamic_batching") and not found.instance_group


def test_json_says_what_was_written(place):
    result = cli("export", "net.onnx", "--triton-repo", "a/models", "--backend", "python", "--max-batch", 8, "--json")
    found = json.loads(result.stdout)
    (model,) = found.pop("models")
    assert found == {"repository": "a/models", "backend": "python"}
    assert (model["name"], model["folder"], model["max_batch"]) == ("net", "a/models/net", 8)
    assert model["files"] == {
        p.relative_to("a/models/net").as_posix(): p.stat().st_size for p in Path("a/models/net").rglob("*.*")
    }
    (group,) = parsed(Path("a/models/net/config.pbtxt").read_text()).instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_CPU")


def test_a_file_on_a_base_needs_dense(place):
    base = {name: t.clone() for name, t in MODELS["lenet"]().state_dict().items()}
    safetensors.torch.save_file(base, "base.safetensors")
    format.save(lenet_on(base), "delta.safetensors")
    args = (
        "delta.safetensors",
        "net.onnx",
        "--triton-repo",
        "models",
        "--model",
        "lenet",
        "--base",
        "base.safetensors",
    )
    for backend in ("onnxruntime", "python"):
        said = error("export", *args, "--backend", backend)
        assert (
            "delta.safetensors would need the base base.safetensors, which Triton does not have: give --dense" in said
        )
    assert not Path("models").exists()
    result = cli("export", *args, "--dense")
    assert result.exit_code == 0, result.output
    assert Path("models/delta/1/model.onnx").stat().st_size > 4 * 44_426
    x = torch.rand(2, 1, 28, 28)
    (found,) = onnxruntime.InferenceSession("models/delta/1/model.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = subcompress.load("delta.safetensors", MODELS["lenet"](), base="base.safetensors")(x)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_names(place, monkeypatch):
    assert cli("export", "net.onnx", "--triton-repo", "models", "--name", "digits-v1.2").exit_code == 0
    assert parsed(Path("models/digits-v1.2/config.pbtxt").read_text()).name == "digits-v1.2"
    for name in ("", "..", ".net", "a/b", "../x", "a b", "é", "-x", "x" * 201, "a\n"):
        assert "the name of a model must be" in error("export", "net.onnx", "--triton-repo", "m", "--name", name)
    assert "net.safetensors and net.onnx would both be called net" in error(
        "export", "net.safetensors", "net.onnx", "--triton-repo", "m"
    )
    assert "--name names one model; 2 files were given" in error(
        "export", "net.onnx", "net.onnx", "--triton-repo", "m", "--name", "x"
    )
    assert not Path("m").exists()
    monkeypatch.setattr("subcompress.hub.local", lambda name, say: place / "net.onnx")
    assert cli("export", "hub:org/digits@v1", "--triton-repo", "m").exit_code == 0
    assert [p.name for p in Path("m").iterdir()] == ["digits"]


def test_a_folder_that_is_not_ours_stays(place):
    args = ("export", "net.onnx", "--triton-repo", "models")
    for _ in range(2):  # its own is replaced
        assert cli(*args).exit_code == 0
    (place / "models/net/1/__pycache__").mkdir()
    (place / "models/net/1/__pycache__/model.pyc").write_bytes(b"Triton's")
    assert cli(*args, "--backend", "python").exit_code == 0
    written = {p: p.read_bytes() for p in Path("models/net").rglob("*.*")}
    assert len(written) == 3
    for change in ("config.pbtxt", "1/model.onnx", "1/model.py", "2/model.onnx", "labels.txt"):
        path = Path("models/net") / change
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(written.get(path, b"") + b"\n")
        assert "models/net exists and was not written by an export" in error(*args)
        assert path.read_bytes().endswith(b"\n")
        path.write_bytes(written[path]) if path in written else path.unlink()
        assert is_own_export(Path("models/net"))
    shutil.rmtree("models/net")
    Path("models/net").symlink_to(place, target_is_directory=True)
    assert "was not written by an export" in error(*args)
    assert cli(*args, "--force").exit_code == 0
    assert not Path("models/net").is_symlink() and (place / "net.onnx").exists()
    Path("models/other").write_text("a file")
    assert "was not written by an export" in error(*args[:2], "--name", "other", *args[2:])


def test_whole_or_not_at_all(place, monkeypatch):
    assert cli("export", "net.onnx", "--triton-repo", "models").exit_code == 0
    before = Path("models/net/config.pbtxt").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(triton, "configuration", full)
        assert "No space left on device" in error("export", "net.onnx", "--triton-repo", "models", "--max-batch", 3)
    rename = Path.rename
    for failing in ("new", "net"):

        def broken(self, target, failing=failing):
            if self.name == failing:
                raise OSError(5, "Input/output error")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", broken)
            assert "Input/output error" in error("export", "net.onnx", "--triton-repo", "models", "--max-batch", 3)
    assert Path("models/net/config.pbtxt").read_bytes() == before
    assert {p.name for p in place.iterdir()} == {"models", "net.onnx", "net.safetensors"}
    assert [p.name for p in Path("models").iterdir()] == ["net"]
    assert "cannot be written" in error("export", "net.onnx", "--triton-repo", "net.safetensors")


def test_a_folder_is_made_beside_the_repository_unless_it_cannot(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "models" / "net") as new:
        assert new.parents[1] == tmp_path and list((tmp_path / "models").iterdir()) == []
        (new / "x").write_text("x")
    assert (tmp_path / "models" / "net" / "x").read_text() == "x"
    assert (tmp_path / "models" / "net").stat().st_mode & 0o777 == 0o777 & ~files_mask()
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with atomic_folder(tmp_path / "models" / "net") as new:
        assert new.parents[1] == tmp_path / "models"
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["net"]


def files_mask() -> int:
    mask = files.os.umask(0)
    files.os.umask(mask)
    return mask


def test_configurations_follow_the_graph():
    axes = {"ids": (TensorProto.INT64, ["n", "length"]), "x": (TensorProto.DOUBLE, ["n", 3, None])}
    found = config(graph(axes, {"y": (TensorProto.INT64, ["n", "length"])}))
    assert found.max_batch_size == 64
    assert [(i.data_type, list(i.dims)) for i in found.input] == [(9, [-1]), (12, [3, -1])]
    fixed = config(graph({"x": (TensorProto.FLOAT, [1, "n"])}, {"y": (TensorProto.FLOAT, [1, "n"])}))
    assert (fixed.max_batch_size, list(fixed.input[0].dims)) == (0, [1, -1])
    assert not fixed.HasField("dynamic_batching")
    other = config(graph({"x": (TensorProto.FLOAT, ["n", 2])}, {"y": (TensorProto.FLOAT, ["m", 2])}))
    assert (other.max_batch_size, list(other.input[0].dims)) == (0, [-1, 2])
    unnamed = config(graph({"x": (TensorProto.FLOAT, [-1, 2])}, {"y": (TensorProto.FLOAT, [None, 2])}))
    assert (unnamed.max_batch_size, list(unnamed.input[0].dims)) == (64, [2])
    flat = config(graph({"x": (TensorProto.BOOL, ["n"])}, {"y": (TensorProto.BOOL, ["n"])}))
    assert list(flat.input[0].dims) == [1] and flat.output[0].HasField("reshape")
    assert list(flat.output[0].reshape.shape) == []
    odd = 'a"b\\c\né'
    assert config(graph({odd: (TensorProto.FLOAT, [2])}, {"y": (TensorProto.FLOAT, [2])})).input[0].name == odd
    assert config(graph(axes, {"y": (TensorProto.INT64, ["n", "length"])}), max_batch=0).max_batch_size == 0


def test_every_type_is_one_of_tritons():
    known = parsed("").DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert set(triton.TYPES.values()) <= set(known.keys())


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({"x": (TensorProto.STRING, ["n"])}, {"y": (TensorProto.STRING, ["n"])}, "x in the graph of x.onnx is STRING"),
        ({"x": (99, [1])}, {"y": (99, [1])}, "x in the graph of x.onnx is UNDEFINED"),
        ({"x": (TensorProto.FLOAT, None)}, {"y": (TensorProto.FLOAT, None)}, "is FLOAT, without a shape"),
        ({"x": (TensorProto.FLOAT, [1])}, {}, "the graph of x.onnx has no output"),
    ],
)
def test_graphs_that_triton_does_not_take(inputs, outputs, reason):
    model = graph(inputs, outputs or {"y": (TensorProto.FLOAT, [1])})
    if not outputs:
        del model.graph.output[:]
    with pytest.raises(SubcompressError, match=reason):
        config(model)


def test_files_that_are_no_models(place):
    text = "away.onnx keeps weights in other files"
    weight = onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
    model = graph({"x": (1, ["n", 2])}, {"y": (1, ["n", 2])}, [helper.make_node("MatMul", ["x", "w"], ["y"])])
    model.graph.initializer.append(weight)
    onnx.save(model, "away.onnx", save_as_external_data=True, location="away.data", size_threshold=0)
    assert text in error("export", "away.onnx", "--triton-repo", "m")
    Path("page.onnx").write_text("<html>")
    assert "page.onnx is not an ONNX file" in error("export", "page.onnx", "--triton-repo", "m")
    Path("cut.onnx").write_bytes(Path("net.onnx").read_bytes()[:3000])
    assert "cut.onnx" in error("export", "cut.onnx", "--triton-repo", "m")
    onnx.save(graph({"x": (1, [1])}, {"y": (1, [1])}, [helper.make_node("Nothing", ["x"], ["y"])]), "odd.onnx")
    assert "odd.onnx: ONNX Runtime" in error("export", "odd.onnx", "--triton-repo", "m")
    assert "gone.onnx cannot be read" in error("export", "gone.onnx", "--triton-repo", "m")
    assert "gone.safetensors cannot be read" in error("export", "gone.safetensors", "--triton-repo", "m")
    assert "got -1" in error("export", "net.onnx", "--triton-repo", "m", "--max-batch", -1)
    assert cli("export", "net.onnx", "--triton-repo", "m", "--backend", "tensorrt").exit_code == 2
    with pytest.raises(SubcompressError, match="backend must be one of onnxruntime, python; got 'x'"):
        export([], "m", backend="x")
    assert not list(Path().glob("m/*"))


def test_a_network_without_a_name_is_asked_for(place):
    format.save(mixed_record(), place / "mixed.safetensors")
    assert "mixed.safetensors does not show which network it is: give it with --model" in error(
        "export", "net.onnx", "mixed.safetensors", "--triton-repo", "m"
    )
    assert "the model" in error("export", "net.safetensors", "--triton-repo", "m", "--model", "mlp")
    assert not list(Path().glob("m/*"))


def test_the_documents_manifests_are_yaml():
    text = (ROOT / "docs" / "SERVING.md").read_text()
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    assert {each["kind"] for each in found} == {"InferenceService"} and len(found) == 2
