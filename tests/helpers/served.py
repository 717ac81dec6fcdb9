"""What servers of the tests serve: LeNet, files on a base, graphs that others write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from records import with_digest
from safetensors.torch import save_file
from serving import Client, packed, traced_here

import subcompress
from subcompress.base import BaseReference, BaseTensors, OnBase
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Group, Record, Unchanged
from subcompress.operators import HadamardBlocks
from subcompress_models import MODELS

LENET = traced_here(MODELS["lenet"]())


SHAPE = Facts(input_shape=(1, 12, 12))


X = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)


def expected(path: Path, x: np.ndarray) -> np.ndarray:
    """What torch gives."""
    with torch.no_grad():
        return subcompress.load(path, MODELS["lenet"]())(torch.from_numpy(x)).numpy()


def binary(x: np.ndarray, size: int | None = None, tail: bytes | None = None, header: Any = None) -> tuple[bytes, Any]:
    """A body in the binary extension, and its headers."""
    told = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    said = {"inputs": [told | {"parameters": {"binary_data_size": x.nbytes if size is None else size}}]}
    head = json.dumps(said).encode()
    length = str(len(head)) if header is None else header
    return head + (x.tobytes() if tail is None else tail), {"inference_header_content_length": length}


def posting(body: bytes, *lines: str, path: str = "/v2/models/one/infer", length: int | None = None) -> bytes:
    """A request as it is sent."""
    head = [f"POST {path} HTTP/1.1", "host: x", *lines, f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*head, "", ""]).encode() + body


class OnBaseFiles:
    """A base in a file, and files on it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.file = folder, folder / "base" / "base.safetensors"
        self.module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        state = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        self.file.parent.mkdir()
        save_file(state, self.file)
        base = BaseTensors(state, "base.safetensors")
        self.standing = OnBase(BaseReference(base.name, "", base.digest, len(state)), base)
        (folder / "files").mkdir()

    def add(self, name: str, seed: int, *acting: str) -> None:
        """A file that changes these tensors."""
        layout = self.standing.layout
        entries = tuple(Coded(2.0**-4, based=True) if spec.name in acting else Unchanged() for spec in layout)
        D = sum(spec.reals for spec in layout if spec.name in acting)
        z = np.random.default_rng(seed).integers(-7, 8, D).astype(np.int32)
        group = Group(HadamardBlocks(D, D, seed, 0, 0, 0), 4, z)
        facts = Facts(input_shape=(6,))
        record = with_digest(Record(seed, layout, (group,), entries, facts=facts, base=self.standing))
        packed(self.folder / "files", name, record)

    def check(self, client: Client, name: str) -> None:
        """That what is served is what torch computes."""
        x = np.random.default_rng(1).random((2, 6), np.float32)
        loaded = subcompress.load(self.folder / "files" / f"{name}.safetensors", self.module, base=self.file)
        (output,) = client.infer(name, x).said["outputs"]
        wanted = loaded(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(np.reshape(output["data"], (2, 2)), wanted, atol=1e-5)

    def sessions(self, client: Client, *names: str) -> int:
        """How many these hold."""
        engines = [client.running.models.find(name).engine for name in names]
        return len({id(e._session) for e in engines if e is not None})


def graph(path: Path, nodes: list[Any], shapes: dict[str, Any], constants: dict[str, Any] | None = None) -> None:
    """An .onnx file of x -> y."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    held = [numpy_helper.from_array(np.array(v), n) for n, v in (constants or {}).items()]
    given, found = ([v for v in values if v.name == name] for name in "xy")
    made = helper.make_graph(nodes, "g", given, found, held)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


STAND_IN = """#!{python} -S
import base64, json, os, sys, time
request = json.load(sys.stdin)
sources = [name.rpartition(":")[0] for name in request["models"]]
for job in request["jobs"]:
    if job["name"] == "dies":
        os._exit(3)
    if job["name"] == "hangs":
        time.sleep(60)
    graph = base64.b64encode("".join([job["name"], *(open(source).read() for source in sources)]).encode()).decode()
    answer = {{"graph": graph, "names": [], "general": True, "network": "net", "reads": sources, "seconds": 0}}
    print(json.dumps(answer), flush=True)
"""
"""Answers as the process that traces does, at once: the graph is the job's name and the text of the user's files."""
