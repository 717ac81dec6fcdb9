"""What this machine offers to compute with, what of it works, and how to mend what does not."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
"""Distributions that install the one package onnxruntime, each over the other's files."""


@dataclass(frozen=True)
class Finding:
    """What was found under a name; mend: empty, or how to mend a fault."""

    name: str
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """Its fields."""
        return asdict(self)


def doctor() -> list[Finding]:
    """Findings about Python, torch, CUDA, Triton, ONNX Runtime and its providers, and the backends of `expand`."""
    return [finding for check in CHECKS for finding in check()]


def _versions() -> Iterable[Finding]:
    yield Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in ("subcompress", "numpy", "onnx", "safetensors"):
        if version := _version(name):
            yield Finding(name, version)


def _torch() -> Iterable[Finding]:
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("torch", f"{torch.__version__}, {built}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            at = torch.cuda.get_device_properties(i)
            yield Finding(f"cuda:{i}", f"{at.name}, {at.total_memory / 1e9:.0f} GB, capability {at.major}.{at.minor}")
    else:
        yield Finding("cuda", "torch sees no device")
    try:
        yield Finding("triton", str(importlib.import_module("triton").__version__))
    except Exception as e:  # a broken installation may raise anything
        mend = "" if isinstance(e, ModuleNotFoundError) else "pip install --force-reinstall triton"
        yield Finding("triton", "not installed" if not mend else f"does not import ({_line(e)})", mend)


def _onnx_runtime() -> Iterable[Finding]:
    installed = {name: version for name in ONNX_RUNTIMES if (version := _version(name))}
    named = ", ".join(f"{name} {version}" for name, version in installed.items())
    wanted = "onnxruntime-gpu" if torch.version.cuda else "onnxruntime"
    if not installed:
        yield Finding("onnxruntime", "not installed", f"pip install {wanted}")
        return
    if len(installed) > 1:
        both = " ".join(installed)
        yield Finding(
            "onnxruntime",
            f"{named}: they overwrite each other's files",
            f"pip uninstall -y {both} && pip install {wanted}",
        )
    try:
        import onnxruntime
    except Exception as e:
        yield Finding(
            "onnxruntime", f"{named}: does not import ({_line(e)})", f"pip install --force-reinstall {wanted}"
        )
        return
    if len(installed) == 1:
        (name,) = installed
        version = str(onnxruntime.__version__)
        mend = "" if version == installed[name] else f"pip install --force-reinstall {name}"
        yield Finding("onnxruntime", named if not mend else f"{named}, but the files are those of {version}", mend)
    yield from _providers(onnxruntime)


def _providers(onnxruntime: Any) -> Iterable[Finding]:
    """Each provider that the installed package has been built with, by whether a graph runs on it."""
    for provider in onnxruntime.get_available_providers():
        name, mend = provider.removesuffix("ExecutionProvider"), ""
        works = _runs_on(onnxruntime, provider)
        if name == "CUDA" and not works and torch.cuda.is_available():
            from onnxruntime.capi import build_and_package_info as built

            needs = getattr(built, "cuda_version", "another version")
            mend = (
                f"this onnxruntime-gpu needs CUDA {needs} with cuDNN 9, torch brings {torch.version.cuda}: install an "
                "onnxruntime-gpu for that one (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html)"
            )
        yield Finding(f"  {name}", "works" if works else "does not run here", mend)


def _runs_on(onnxruntime: Any, provider: str) -> bool:
    import numpy as np
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    before = onnxruntime.get_default_logger_severity() if hasattr(onnxruntime, "get_default_logger_severity") else 2
    onnxruntime.set_default_logger_severity(4)  # a provider that cannot load says so on stderr, at length
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[provider], enable_fallback=False
        )
        ours = session.get_providers()[0] == provider
        return ours and float(session.run(None, {"x": np.ones(1, np.float32)})[0][0]) == 1.0
    except Exception:
        return False
    finally:
        onnxruntime.set_default_logger_severity(before)


def _backends() -> Iterable[Finding]:
    """Whether every backend rebuilds the same bits of a few thousand weights."""
    import numpy as np

    from subcompress.backends import available
    from subcompress.expand import digest_of, expand
    from subcompress.layout import Layout, TensorSpec
    from subcompress.operators import HadamardBlocks
    from subcompress.record import Coded, Group, Record

    z = np.arange(-100, 100, dtype=np.int32)
    layout = Layout((TensorSpec("w", "F32", (9_999,)),))
    record = Record(7, layout, (Group(HadamardBlocks.sized(9_999, 200, 7), 8, z),), (Coded(0.0078125),))
    for name in available():
        same = digest_of(record, expand(record, name)).hex() == WEIGHTS
        mend = "" if same else "report this machine: its arithmetic is not that of others"
        yield Finding(f"backend {name}", "rebuilds the right bits" if same else "rebuilds OTHER BITS", mend)


WEIGHTS = "1b29234186836b59a3bb0db69a96bccc"
"""The digest of those weights on every machine."""

CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (_versions, _torch, _onnx_runtime, _backends)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
