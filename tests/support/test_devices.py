"""--device auto: CUDA where a kernel runs on it, else the CPU, in a line that says which and why."""

from __future__ import annotations

import networks
import pytest
import torch

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.onnx import session
from subcompress.support import devices


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    devices._kernel_fault.cache_clear()
    yield
    devices._kernel_fault.cache_clear()


def with_cuda(monkeypatch, count: int = 1, fails: str | None = None) -> None:
    """As if torch saw so many devices, whose kernels work or fail."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(devices, "_device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")

    def arange(*args, device):
        if fails is not None:
            raise RuntimeError(fails)
        return torch.tensor([0.0, 1.0, 2.0, 3.0])

    monkeypatch.setattr(devices.torch, "arange", arange)


def test_cuda_where_it_works(monkeypatch):
    with_cuda(monkeypatch)
    assert devices.choose_device("auto") == devices.Device(
        "cuda", "device: cuda (A GPU); --device cpu computes without it"
    )
    assert devices.choose_device("cuda:0").name == "cuda:0"
    with pytest.raises(SubcompressError, match=r"--device cuda:3 needs a GPU .* \(torch sees 1, from cuda:0 on\)"):
        devices.choose_device("cuda:3")


def test_cuda_that_is_there_and_does_not_work(monkeypatch):
    with_cuda(monkeypatch, fails="no kernel image is available for execution on the device\nand more")
    found = devices.choose_device("auto")
    assert found.name == "cpu"
    assert "because CUDA does not work here: no kernel image is available" in found.line
    assert "\n" not in found.line
    with pytest.raises(SubcompressError, match="no kernel image is available"):
        devices.choose_device("cuda")


def test_a_build_without_cuda_beside_a_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices, "_device_count", lambda: 0)
    monkeypatch.setattr(devices, "DRIVER", (str(tmp_path),))
    assert devices.choose_device("auto").line.endswith("CUDA does not work here: this torch is built without CUDA")
    monkeypatch.setattr(devices, "DRIVER", ())
    assert devices.choose_device("auto") == devices.Device("cpu", "device: cpu (there is no CUDA device)")


def test_what_the_environment_says(monkeypatch):
    with_cuda(monkeypatch)
    monkeypatch.setenv(devices.VARIABLE, "cpu")
    assert devices.choose_device("auto") == devices.Device("cpu", "device: cpu, as SUBCOMPRESS_DEVICE says")
    assert devices.choose_device("cuda").name == "cuda"
    monkeypatch.setenv(devices.VARIABLE, "fridge")
    with pytest.raises(SubcompressError, match="--device must be auto, cpu, cuda or cuda:N; got fridge"):
        devices.choose_device("auto")


def test_graphs_run_on_cuda_where_onnx_runtime_does_too(monkeypatch):
    with_cuda(monkeypatch)
    monkeypatch.setattr(session, "runs_on", lambda *_: True)
    assert session.choose_graph_device("auto").name == "cuda"
    monkeypatch.setattr(session, "runs_on", lambda *_: False)
    found = session.choose_graph_device("auto")
    assert found.name == "cpu"
    assert "ONNX Runtime does not run on CUDA here" in found.line


def test_a_fit_says_where_it_computes(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_choose_automatically", lambda: devices.Device("cpu", "device: cpu, of the test"))
    notes = []

    class Heard(Listener):
        def note(self, text):
            notes.append(text)

    case = networks.CASES["mlp"]
    subcompress.fit(case.make(), case.data(), tmp_path / "run", d=9, epochs=1, batch_size=32, listener=Heard())
    assert notes.count("device: cpu, of the test") == 1
    assert '"device": "cpu"' in (tmp_path / "run" / "command.json").read_text()
