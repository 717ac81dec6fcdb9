"""What `export` writes, in the real Triton server, by its own client."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from commands import cli
from records import lenet_record, record_of
from torch import Tensor, nn
from triton_server import TritonServer, UnavailableError, environment

import subcompress
from subcompress import format
from subcompress.format.facts import Facts, Input
from subcompress_models import MODELS

CLIENT = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

client = triton.InferenceServerClient(sys.argv[1])
given = dict(np.load(sys.argv[2] + "/given.npz"))
found, said = {"numpy": np.array(np.__version__)}, {}

def fed(**inputs):
    made = []
    for name, x in inputs.items():
        made.append(triton.InferInput(name, x.shape, np_to_triton_dtype(x.dtype)))
        made[-1].set_data_from_numpy(x)
    return made

def refused(name, **inputs):
    try:
        client.infer(name, fed(**inputs))
    except InferenceServerException as e:
        return str(e)

def at_once(name, asked):
    own = threading.local()

    def ask(inputs):
        if not hasattr(own, "client"):
            own.client = triton.InferenceServerClient(sys.argv[1])
        try:
            return own.client.infer(name, fed(**inputs)).as_numpy("output")
        except InferenceServerException as e:
            return str(e)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, asked))

x = given["images"]
said["metadata"] = client.get_model_metadata("net")
said["config"] = client.get_model_config("net")
found["binary"] = client.infer("net", fed(input=x)).as_numpy("output")
text = fed(input=x)
text[0].set_data_from_numpy(x, binary_data=False)
wanted = [triton.InferRequestedOutput("output", binary_data=False)]
found["json"] = client.infer("net", text, outputs=wanted).as_numpy("output")

asked = [x[i : i + 1 + i % 3] for i in range(len(x) - 3) for _ in range(8)]
parts = at_once("net", [{"input": part} for part in asked])
found["concurrent"] = np.concatenate(parts)

parts = at_once("patient", [{"input": x[a:b]} for a, b in ((0, 1), (1, 3), (3, 6))])
found["joined"] = np.concatenate(parts)
client.infer("patient", fed(input=x[:6]))  # a run is counted after its answers have gone, but before the next
stats = client.get_inference_statistics("patient")["model_stats"][0]
said["joined"] = [stats["inference_count"], stats["execution_count"]]

said["wrong shape"] = refused("net", input=x[:, :, :, :27])
said["wrong dtype"] = refused("net", input=x.astype(np.float64))
said["wrong name"] = refused("net", image=x)
said["too many"] = refused("net", input=np.zeros((65, 1, 28, 28), np.float32))
found["afterwards"] = client.infer("net", fed(input=x)).as_numpy("output")

ids, mask = given["ids"], given["mask"]
found["texts"] = client.infer("texts", fed(ids=ids, mask=mask)).as_numpy("output")
said["unequal lengths"] = refused("texts", ids=ids, mask=mask[:, 1:])
bad = ids.copy()
bad[0, 0] = 1000
sizes = [5 if i == 20 else 3 + i % 2 for i in range(40)]
asked = [{"ids": (bad if i == 20 else ids)[:, :n], "mask": mask[:, :n]} for i, n in enumerate(sizes)]
said["beside a bad one"] = []
for i, answer in enumerate(at_once("texts", asked)):
    if isinstance(answer, str):
        said["beside a bad one"].append([i, answer])
    else:
        found["texts %d" % i] = answer

client.close()
np.savez(sys.argv[2] + "/found.npz", **found)
print(json.dumps(said))
"""


class Texts(nn.Module):
    """Tokens (N, L) and their mask (N, L) -> a number for each text, (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.embed(ids).sum(-1) * mask).sum(-1)


@pytest.mark.slow
def test_python_models_in_the_real_server(tmp_path):
    try:
        python = environment(tmp_path / "env")
    except UnavailableError as e:
        pytest.skip(str(e))
    format.save(lenet_record(), tmp_path / "net.safetensors")
    lengths = Facts(inputs=(Input("ids", "I64", (0,)), Input("mask", "F32", (0,))))
    format.save(record_of(Texts(), lengths), tmp_path / "texts.safetensors")
    (tmp_path / "mine.py").write_text("from test_triton_server import Texts\n")
    for name, network in (("net", ()), ("texts", ("--model", f"{tmp_path / 'mine.py'}:Texts"))):
        file = tmp_path / f"{name}.safetensors"
        result = cli("export", file, "--triton-repo", tmp_path / "models", "--backend", "python", *network)
        assert result.exit_code == 0, result.output
    shutil.copy(tmp_path / "net.safetensors", tmp_path / "first.safetensors")
    shutil.copy(tmp_path / "models" / "net" / "1" / "model.onnx", tmp_path / "net.onnx")
    patient(tmp_path / "models")
    rng = np.random.default_rng(0)
    given = {
        "images": rng.random((20, 1, 28, 28), np.float32),
        "ids": rng.integers(0, 16, (2, 5)),
        "mask": np.ones((2, 5), np.float32),
    }
    np.savez(tmp_path / "given.npz", **given)
    server = TritonServer(python, tmp_path / "models", tmp_path, "--model-control-mode=explicit", "--load-model=*")
    try:
        command = [python, "-c", CLIENT, server.address, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr + server.log()
        replaced(tmp_path, server.address)
    finally:
        server.close()
    check(tmp_path, json.loads(done.stdout), dict(np.load(tmp_path / "found.npz")), given)


def patient(repository: Path) -> None:
    """A copy of net that waits for six examples, so that what it joins does not depend on the clock."""
    config = shutil.copytree(repository / "net", repository / "patient") / "config.pbtxt"
    text = config.read_text().replace('name: "net"', 'name: "patient"')
    waits = "dynamic_batching { preferred_batch_size: [ 6 ] max_queue_delay_microseconds: 20000000 }"
    config.write_text(text.replace("dynamic_batching { }", waits))


def replaced(folder: Path, address: str) -> None:
    """Another file under the same name: the server answers with it once it is told to load it."""
    format.save(lenet_record(seed=1), folder / "net.safetensors")
    result = cli("export", folder / "net.safetensors", "--triton-repo", folder / "other", "--backend", "python")
    assert result.exit_code == 0, result.output
    x = np.ones((1, 1, 28, 28), np.float32)
    ask = {"inputs": [{"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.reshape(-1).tolist()}]}
    first, second = (
        onnxruntime.InferenceSession(folder / place / "net" / "1" / "model.onnx").run(None, {"input": x})[0][0]
        for place in ("models", "other")
    )
    assert np.allclose(post(address, "models/net/infer", ask)["outputs"][0]["data"], first, atol=1e-5)
    result = cli("export", folder / "net.safetensors", "--triton-repo", folder / "models", "--backend", "python")
    assert result.exit_code == 0, result.output  # over what Python has compiled beside model.py
    post(address, "repository/models/net/load", {})
    assert np.allclose(post(address, "models/net/infer", ask)["outputs"][0]["data"], second, atol=1e-5)


def post(address: str, place: str, body: dict) -> dict:
    request = urllib.request.Request(f"http://{address}/v2/{place}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "{}")


def check(folder: Path, said: dict, found: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> None:
    """Every answer against ONNX Runtime's here, every refusal by its words."""
    session = onnxruntime.InferenceSession(folder / "net.onnx")
    (expected,) = session.run(None, {"input": given["images"]})
    with torch.no_grad():
        net = subcompress.load(folder / "first.safetensors", MODELS["lenet"]())
        assert np.allclose(net(torch.from_numpy(given["images"])).numpy(), expected, atol=1e-5)
    assert found["numpy"].item().startswith("1.26")
    for name in ("binary", "json", "afterwards"):
        assert np.allclose(found[name], expected, atol=1e-5), name
    n = len(expected) - 3
    concurrent = np.concatenate([expected[i : i + 1 + i % 3] for i in range(n) for _ in range(8)])
    assert np.allclose(found["concurrent"], concurrent, atol=1e-5)
    assert np.allclose(found["joined"], expected[:6], atol=1e-5)
    assert said["joined"] in ([6, 1], [12, 2])
    assert said["metadata"]["versions"] == ["1"]
    assert said["metadata"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert said["config"]["max_batch_size"] == 64
    assert said["config"]["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert "unexpected shape for input 'input'" in said["wrong shape"]
    assert "data-type is 'FP64'" in said["wrong dtype"]
    assert "image" in said["wrong name"]
    assert "batch-size must be <= 64" in said["too many"]
    texts = onnxruntime.InferenceSession(folder / "models" / "texts" / "1" / "model.onnx")
    (numbers,) = texts.run(None, {"ids": given["ids"], "mask": given["mask"]})
    assert numbers.shape == (2,) and np.allclose(found["texts"], numbers[:, None], atol=1e-5)
    assert "ONNX Runtime refuses this input" in said["unequal lengths"]
    ((which, reason),) = said["beside a bad one"]
    assert which == 20 and "ONNX Runtime refuses this input" in reason and "out of data bounds" in reason
    for i in set(range(40)) - {20}:
        short = {name: given[name][:, : 3 + i % 2] for name in ("ids", "mask")}
        assert np.allclose(found[f"texts {i}"], texts.run(None, short)[0][:, None], atol=1e-5), i
