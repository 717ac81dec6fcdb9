"""What `doctor` says of good and of broken machines."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata

import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from subcompress import doctor
from subcompress.native import compiled
from subcompress_cli import main

MODULE = importlib.import_module("subcompress.api.doctor")


def test_doctor_finds_this_environment_well():
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert f"torch              {torch.__version__}" in done.stdout
    assert "CPU              works" in done.stdout
    if not torch.cuda.is_available():
        assert "CUDA             does not run here: torch sees no device" in done.stdout
    assert "backend torch      rebuilds the right bits" in done.stdout
    as_json = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert {"python", "torch", "onnxruntime", "triton"} <= {finding["name"] for finding in as_json}


def test_doctor_says_which_vectors_run_and_takes_those_asked_for(monkeypatch):
    assert compiled.requested_kind() == ""
    for kind in compiled.available_kinds():
        with compiled.force_kind(kind):
            found = [f.found for f in MODULE._backends() if f.name == "backend native"]
        assert found[0] == f"rebuilds the right bits with {kind} vectors, which are taken"
        assert sorted(found[1:]) == sorted(
            f"rebuilds the right bits with {k} vectors" for k in compiled.available_kinds() if k != kind
        )
    monkeypatch.setattr(MODULE, "CHECKS", {"subcompress": MODULE._backends})
    done = CliRunner().invoke(main, ["doctor", "--vectors", "numpy"])
    assert "left out, as SUBCOMPRESS_VECTORS=numpy asks" in done.stdout
    refused = CliRunner().invoke(main, ["doctor", "--vectors", "sse9"])
    assert refused.exit_code != 0
    assert "SUBCOMPRESS_VECTORS must be one of plain, avx2, avx512, numpy, or unset; got 'sse9'" in refused.stderr
    assert compiled.requested_kind() == ""


def test_doctor_names_two_runtimes_as_a_fault(monkeypatch):
    real = metadata.version

    def version(name):
        return "1.31.1" if name in ("onnxruntime", "onnxruntime-gpu") else real(name)

    monkeypatch.setattr(metadata, "version", version)
    failed = CliRunner().invoke(main, ["doctor"])
    assert failed.exit_code == 1
    assert "fault: onnxruntime onnxruntime 1.31.1, onnxruntime-gpu 1.31.1: they overwrite each other" in failed.stderr
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime" in failed.stderr


def test_doctor_says_how_to_get_what_is_missing(monkeypatch):
    real = metadata.version

    def version(name):
        if name.startswith("onnxruntime"):
            raise metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    failed = CliRunner().invoke(main, ["doctor"])
    assert "fault: onnxruntime not installed; pip install onnxruntime" in failed.stderr


def test_doctor_sees_wrong_arithmetic(monkeypatch):
    monkeypatch.setattr(MODULE, "WEIGHTS", "0" * 32)
    assert all(f.found.startswith("rebuilds OTHER BITS") for f in doctor() if f.name.startswith("backend"))


@pytest.fixture
def device(monkeypatch):
    """torch sees a CUDA device that this torch does not compute on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def properties(_):
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def faults() -> dict[str, str]:
    return {f.name.strip(): f.fix for f in doctor() if f.fix}


def test_a_device_that_does_not_answer_or_compute_is_a_fault(device):
    found = faults()
    assert "nvidia-smi" in found["cuda:0"]
    if not torch.version.cuda:
        assert "install a torch that is built for it" in found["backend torch-cuda"]
        assert "torch brings none" in found["CUDA"]


def test_a_device_without_the_runtime_for_it_is_a_fault(device, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert faults()["CUDA"].endswith("&& pip install onnxruntime-gpu")


def test_a_broken_package_is_reported_and_breaks_nothing(monkeypatch):
    monkeypatch.delattr(onnxruntime, "__version__")
    assert faults()["onnxruntime"].startswith("pip install --force-reinstall onnxruntime")
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(onnxruntime, "__version__", metadata.version("onnxruntime-gpu"), raising=False)
    assert "onnxruntime" in {f.name for f in doctor()}
