"""The example page in a browser: digits drawn, weights bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from beside import beside, giving_weights
from graphs import bare, computed, weights_only
from places import ROOT
from staged import staged_record

import subcompress
from subcompress import format
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import raw_bytes

PAGE, HERE = ROOT / "examples" / "web", ROOT / "tests" / "helpers"
PACKED = ROOT / "models" / "packed" / "mnist-99.safetensors"


def test_the_pages_model_is_that_of_the_kept_file():
    """examples/web/digit.onnx, as `unpack --self-unfolding` writes it."""
    record = format.read(PACKED)[0]
    found, expected = computed(PAGE / "digit.onnx", record), expand(record)
    assert found.keys() == expected.keys()
    assert all(values.tobytes() == raw_bytes(expected[name]) for name, values in found.items())
    facts = {p.key: p.value for p in onnx.load(PAGE / "digit.onnx").metadata_props}
    assert {"labels", "mean", "std", "input_shape", "weights_digest"} <= facts.keys()  # what the page reads
    assert facts["weights_digest"] == record.digest.hex()


def test_versions_are_pinned():
    package = json.loads((PAGE / "package.json").read_text())
    assert all(v[0].isdigit() for part in ("dependencies", "devDependencies") for v in package[part].values())
    lock = json.loads((PAGE / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"] == package["dependencies"]


def page_in(folder: Path) -> Path:
    """A copy of the page with what npm installs for it; skips the test where npm cannot."""
    page = shutil.copytree(PAGE, folder / "web", ignore=shutil.ignore_patterns("node_modules", "dist"))
    installed = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=page, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install what the page needs: {installed.stderr.strip().splitlines()[:1]}")
    return page


@pytest.mark.slow
def test_graphs_beside_a_base_share_it_and_give_the_same_bits(tmp_path):
    """onnxruntime-web, in Node: the base's file is given once for two graphs, one of which gives every weight."""
    if not shutil.which("npm"):
        pytest.skip("no npm here, which installs onnxruntime-web")
    made, page = beside(tmp_path / "made"), page_in(tmp_path)
    shutil.copy(HERE / "beside.mjs", page)
    folder = made["graph"].parent
    x = torch.randint(40, (3, 5), generator=torch.Generator().manual_seed(1))
    (tmp_path / "inputs.json").write_text(json.dumps({"shape": [3, 5], "values": x.reshape(-1).tolist()}))
    graphs = [made["graph"], giving_weights(made, folder / "weights.onnx")]
    command = ["node", "beside.mjs", folder / "model.safetensors", tmp_path / "inputs.json", *graphs]
    (answers, *_), weights = json.loads(subprocess.check_output(command, cwd=page, text=True).strip().splitlines()[-1])
    with torch.no_grad():
        expected = subcompress.load(made["file"], made["module"], base=made["base"])(x)
    np.testing.assert_allclose(answers, expected.reshape(-1), atol=1e-5)
    state = expand(made["record"])
    for name, values in zip(state, weights, strict=True):
        assert np.array(values, np.float32).tobytes() == raw_bytes(state[name]), name


@pytest.mark.slow
def test_a_browser_recognizes_digits_and_unfolds_the_same_bits(tmp_path):
    chrome = os.environ.get("CHROME") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )
    if not chrome:
        pytest.skip("no Chromium here: install one, or name it in CHROME")
    if not shutil.which("npm"):
        pytest.skip("no npm here, which builds the page")
    page = page_in(tmp_path)
    subprocess.run(["npm", "run", "build"], cwd=page, check=True, capture_output=True)
    state = expand(format.read(PACKED)[0])
    graph = weights_only((PAGE / "digit.onnx").read_bytes(), {name: t.dtype for name, t in state.items()})
    large, names = bare(staged_record())
    folders = [tmp_path / "digit", tmp_path / "large"]
    values = [list(state.values()), [expand(staged_record())[name] for name in names]]
    for folder, data, tensors in zip(folders, (graph, large.SerializeToString()), values, strict=True):
        folder.mkdir()
        (folder / "graph.onnx").write_bytes(data)
        (folder / "expected.bin").write_bytes(b"".join(raw_bytes(tensor) for tensor in tensors))
    done = subprocess.run(
        ["node", "test.mjs", *(f"--weights={folder}" for folder in folders)],
        cwd=page,
        capture_output=True,
        text=True,
        env=os.environ | {"CHROME": chrome},
    )
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, seen
    assert seen["weights"] == sum(tensor.numel() for tensors in values for tensor in tensors)
    assert seen["different"] == 0
    assert f"The model took {(PAGE / 'digit.onnx').stat().st_size:,} bytes." in seen["size"]
    assert [seen[k][0] for k in ("mouse 0", "mouse 1", "mouse 7", "keyboard 1", "touch 7")] == list("01717")
    assert "digit.onnx is not there (404)" in seen["lost"]
