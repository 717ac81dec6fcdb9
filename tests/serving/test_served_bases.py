"""Files on a base, served: they share one session, and a base that cannot be had is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import safetensors.torch
import torch
from served import LENET, SHAPE, OnBaseFiles, X
from serving import serving, traced_here

import subcompress
from subcompress import SubcompressError
from subcompress_models import MODELS


def test_files_on_a_base_share_its_session(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(4):
        files.add(f"n{i}", i, "2.weight", "2.bias")
    trace = traced_here(files.module)
    with serving(tmp_path / "files", trace=trace, bases=[str(files.file)]) as client:
        for name in ("n0", "n1", "n2", "n3", "n0"):
            files.check(client, name)
        assert len(trace.jobs) == 1 and files.sessions(client, "n0", "n1", "n2", "n3") == 1  # type: ignore[attr-defined]
        assert client("GET", "/status").said["memory"]["bases"] == sum(spec.nbytes for spec in files.standing.layout)
        files.add("wider", 4, "2.weight", "0.bias")  # changes what the others do not
        client("GET", "/v2/repository/index")
        for name in ("n0", "wider", "n1"):
            files.check(client, name)
        assert len(trace.jobs) == 2 and files.sessions(client, "n0", "n1", "n2", "n3", "wider") == 1  # type: ignore[attr-defined]
        files.file.unlink()  # it was copied
        files.add("last", 5, "0.bias")
        client("GET", "/v2/repository/index")
        assert client.infer("last", np.zeros((1, 6), np.float32)).status == 200


def test_a_wider_file_that_cannot_be_traced_leaves_the_others(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(2):
        files.add(f"n{i}", i, "2.weight")
    works = traced_here(files.module)

    def trace(jobs: Any) -> Any:
        return [f if len(j.inputs) == 1 else "no luck" for j, f in zip(jobs, works(jobs), strict=True)]

    with serving(tmp_path / "files", trace=trace, bases=[str(files.file)]) as client:
        files.check(client, "n0")
        files.add("wider", 4, "2.weight", "0.bias")
        client("GET", "/v2/repository/index")
        for _ in range(2):
            found = client.infer("wider", np.zeros((1, 6), np.float32))
            assert found.status == 503 and "no luck" in found.error
            files.check(client, "n0")
            files.check(client, "n1")
        assert len(works.jobs) == 2  # type: ignore[attr-defined]


def test_a_base_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(3):
        files.add(f"n{i}", i, "2.weight")
    with (
        pytest.raises(SubcompressError, match=r"no such file or folder: \S*nowhere"),
        serving(tmp_path / "files", trace=LENET, bases=[f"{tmp_path}/nowhere"]),
    ):
        pass
    files.file.write_bytes(files.file.read_bytes()[:200])
    with serving(tmp_path / "files", trace=LENET, bases=[str(files.file)]) as client:
        for i in range(3):
            found = client.infer(f"n{i}", np.zeros((1, 6), np.float32))
            assert found.status == 503 and "give it with --base" in found.error
            assert "is neither a safetensors file" in found.error


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and files on it of which each moves something else."""
    made = tmp_path_factory.mktemp("tuned")
    safetensors.torch.save_file(network(0).state_dict(), made / "base.safetensors")
    (made / "files").mkdir()
    for i, act_on in enumerate(("norms", "heads", "biases,heads")):
        sub = subcompress.Subspace.of(network(i), 20, base=made / "base.safetensors", act_on=act_on, seed=i)
        with torch.no_grad():
            sub.z.normal_(generator=torch.Generator().manual_seed(i))
        sub.round(4)
        subcompress.pack(sub, made / "files" / f"{i}.safetensors", SHAPE)
    return made


def network(seed: int) -> torch.nn.Module:
    """With norms."""
    torch.manual_seed(seed)
    return networks.CASES["batch norm"].make()


def on_base(tuned: Path, name: str, x: np.ndarray) -> np.ndarray:
    """What torch gives."""
    loaded = subcompress.load(tuned / "files" / f"{name}.safetensors", network(7), base=tuned / "base.safetensors")
    with torch.no_grad():
        return loaded(torch.from_numpy(x)).numpy()


def test_files_on_a_base_share_one_session(tuned: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes((tuned / "base.safetensors").read_bytes())
    trace = traced_here(network(1))
    x = np.random.default_rng(1).random((2, *SHAPE.input_shape), np.float32)
    with serving(tuned / "files", trace=trace, bases=[str(base)], memory=100_000) as client:
        base.write_bytes(b"")  # cut off while it is in use
        for name in ("0", "1", "2", "0", "2"):
            said = client.infer(name, x).said
            wanted = on_base(tuned, name, x)
            np.testing.assert_allclose(np.reshape(said["outputs"][0]["data"], wanted.shape), wanted, atol=1e-4)
        status = client("GET", "/status").said
        assert status["memory"]["bases"] > 0 and status["memory"]["models"] <= 100_000
        assert len(client.running.models.networks._shared) == 1
    assert len(trace.jobs) == 1  # type: ignore[attr-defined]


def test_a_file_that_moves_more_than_those_before_it(tuned: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).random((2, *SHAPE.input_shape), np.float32)
    first = (tuned / "files" / "0.safetensors").read_bytes()
    (tmp_path / "0.safetensors").write_bytes(first)
    with serving(tmp_path, trace=traced_here(network(1)), bases=[str(tuned / "base.safetensors")]) as client:
        before = client.infer("0", x).said["outputs"][0]["data"]
        (tmp_path / "2.safetensors").write_bytes((tuned / "files" / "2.safetensors").read_bytes())
        client("POST", "/v2/repository/index")
        said = client.infer("2", x).said
        wanted = on_base(tuned, "2", x)
        np.testing.assert_allclose(np.reshape(said["outputs"][0]["data"], wanted.shape), wanted, atol=1e-4)
        np.testing.assert_allclose(client.infer("0", x).said["outputs"][0]["data"], before, atol=1e-5)


def test_another_base_is_refused(tuned: Path, tmp_path: Path, folder: Path) -> None:
    safetensors.torch.save_file(network(5).state_dict(), tmp_path / "other.safetensors")
    bases = [str(tmp_path / "other.safetensors")]
    with serving(tuned / "files", folder, trace=traced_here(network(1), MODELS["lenet"]()), bases=bases) as client:
        found = client.infer("0", X)
        assert found.status == 503 and "give it with --base" in found.error
        assert [line for line in client.said if "--base" in line and line.startswith("0, 1 and 1 more: ")]
        assert client.infer("one", X).status == 200
