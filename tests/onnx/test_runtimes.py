"""Our graphs in other releases of ONNX Runtime, each in an environment of its own with nothing of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from beside import beside, giving_weights
from graphs import bare, weights_only
from places import GOLDEN
from records import lenet_record
from staged import staged_record

import subcompress
from subcompress import format
from subcompress.onnx.tracing import OLDEST_RUNTIME
from subcompress.rebuild.expand import expand
from subcompress_models import MODELS

RELEASES = {"1.15.1": "numpy<2", "1.16.3": "numpy<2", "1.20.1": "numpy>=2"}
"""The oldest, the oldest of the last years, one in the middle; the pinned one runs in the other tests and here."""

PROGRAM = """
import json, sys, time
import numpy as np
import onnxruntime
onnxruntime.set_default_logger_severity(3)
found = {"version": onnxruntime.__version__}
for name in sys.argv[1:]:
    expected = [value for _, value in sorted(np.load(name + ".npz").items(), key=lambda kv: int(kv[0][4:]))]
    fed = {"input": np.load(name + ".input.npy")} if name.endswith("whole") else {}
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(name + ".onnx", options, providers=["CPUExecutionProvider"])
        given = session.run(None, fed)
        if fed:
            same = all(np.allclose(a, b, atol=1e-4) for a, b in zip(given, expected))
        else:
            same = [a.tobytes() for a in given] == [b.tobytes() for b in expected]
        found[name.rpartition("/")[2] + " " + level] = same
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Path]:
    """Graphs that give weights, beside the weights; and a whole network, unfolding and plain, beside its outputs."""
    folder = tmp_path_factory.mktemp("cases")
    records = {"windows": format.read(GOLDEN / "windows.safetensors")[0], "staged": staged_record()}
    for name, record in records.items():
        model, names = bare(record)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        np.savez(folder / f"{name}.npz", *(expand(record)[n].reshape(-1).numpy() for n in names))
    record = lenet_record()
    format.save(record, folder / "net.safetensors")
    whole = subcompress.unpack(
        folder / "net.safetensors", folder / "whole.onnx", MODELS["lenet"](), self_unfolding=True
    )
    state = expand(record)
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    (folder / "lenet.onnx").write_bytes(weights_only(whole.read_bytes(), dtypes))
    np.savez(folder / "lenet.npz", *(tensor.numpy() for tensor in state.values()))
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    np.save(folder / "whole.input.npy", x.numpy())
    with torch.no_grad():
        np.savez(folder / "whole.npz", subcompress.load(folder / "net.safetensors", MODELS["lenet"]())(x).numpy())
    subcompress.unpack(folder / "net.safetensors", folder / "plain-whole.onnx", MODELS["lenet"]())
    for name in ("input.npy", "npz"):
        shutil.copy(folder / f"whole.{name}", folder / f"plain-whole.{name}")
    return [folder / name for name in ("windows", "staged", "lenet", "whole", "plain-whole", *based(folder))]


def based(folder: Path) -> tuple[str, str]:
    """A network beside its base, and the part of its graph that gives every weight, in a folder with the base."""
    made = beside(folder / "made")
    graphs = made["graph"].parent
    giving_weights(made, graphs / "weights.onnx")
    np.savez(graphs / "weights.npz", *(tensor.numpy() for tensor in expand(made["record"]).values()))
    made["graph"].rename(graphs / "tune-whole.onnx")
    x = torch.randint(40, (3, 5), generator=torch.Generator().manual_seed(1))
    np.save(graphs / "tune-whole.input.npy", x.numpy())
    with torch.no_grad():
        found = subcompress.load(made["file"], made["module"], base=made["base"])(x)
    np.savez(graphs / "tune-whole.npz", found.numpy())
    inside = graphs.relative_to(folder)
    return f"{inside}/weights", f"{inside}/tune-whole"


def check(python: Path | str, cases: list[Path], version: str) -> None:
    """Every case, with graph optimization off, basic and all."""
    found = json.loads(subprocess.check_output([python, "-c", PROGRAM, *map(str, cases)]))
    assert found.pop("version") == version
    assert len(found) == 3 * len(cases)
    assert all(found.values()), [name for name, same in found.items() if not same]


@pytest.mark.slow
def test_the_installed_one_computes_the_same_bits(cases):
    check(sys.executable, cases, onnxruntime.__version__)


def test_the_oldest_is_the_one_that_files_name():
    assert min(RELEASES, key=lambda v: [int(p) for p in v.split(".")]).startswith(f"{OLDEST_RUNTIME}.")


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_computes_the_same_bits(release, cases, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wanted = [f"onnxruntime=={release}", RELEASES[release]]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"pip cannot install onnxruntime {release}: {' '.join(reason)[:200]}")
    check(python, cases, release)
