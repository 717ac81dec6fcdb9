"""What this machine offers to compute with, what of it works, and how to fix what does not."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from subcompress.errors import one_line
from subcompress.format.record import Coded, Group, Record
from subcompress.native import compiled
from subcompress.onnx.runtime import runs_on
from subcompress.operators import HadamardBlocks, ScatteredBlocks
from subcompress.operators.forms import Seeded
from subcompress.rebuild import arrays
from subcompress.rebuild.backends import BACKENDS, available
from subcompress.support.lazy import torch
from subcompress.tensors.digest import weights_digest
from subcompress.tensors.layout import Layout, TensorSpec, raw_bytes

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
"""Distributions that install the one package onnxruntime, each over the other's files."""

SERVER = "subcompress-server"
"""The distribution of the same files that leaves out torch."""


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`.

    Attributes:
        name: What was checked.
        found: What was found.
        fix: How to repair it, empty if nothing is wrong.
    """

    name: str
    found: str
    fix: str = ""


def doctor() -> list[Finding]:
    """Check what this machine can compute with.

    Returns:
        Findings about Python, torch, CUDA, Triton, ONNX Runtime and its providers, and each backend.
    """
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check()
        except Exception as e:  # what is broken here may break in any way
            findings.append(
                Finding(name, f"cannot be examined ({one_line(e)})", f"pip install --force-reinstall {name}")
            )
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in ("subcompress", "numpy", "onnx", "safetensors"):
        if version := _version(name):
            yield Finding(name, version)
        elif name != "subcompress":  # which may run from a checkout
            yield Finding(name, "not installed", f"pip install {name}")
    if server := _version(SERVER):
        both = _version("subcompress") is not None
        yield Finding(
            SERVER,
            f"{server}: it and subcompress overwrite each other's files" if both else server,
            f"pip uninstall -y {SERVER} && pip install --force-reinstall --no-deps subcompress" if both else "",
        )


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _torch() -> Iterator[Finding]:
    if not _has_torch():
        is_server = _version(SERVER) is not None
        yield Finding("torch", "not installed", "" if is_server else "pip install torch")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("torch", f"{torch.__version__}, {built}")
    if not torch.cuda.is_available():
        yield Finding(
            "cuda", "torch sees no device" if torch.version.cuda else "no device: torch is built without CUDA"
        )
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            at = torch.cuda.get_device_properties(i)
            yield Finding(f"cuda:{i}", f"{at.name}, {at.total_memory / 1e9:.0f} GB, capability {at.major}.{at.minor}")
        except Exception as e:
            yield Finding(
                f"cuda:{i}", f"does not respond ({one_line(e)})", "nvidia-smi says what the driver sees of it"
            )


def _triton() -> Iterator[Finding]:
    try:
        yield Finding("triton", str(importlib.import_module("triton").__version__))
    except ModuleNotFoundError:
        yield Finding("triton", "not installed")


def _onnx_runtime() -> Iterator[Finding]:
    installed = {name: version for name in ONNX_RUNTIMES if (version := _version(name))}
    named = ", ".join(f"{name} {version}" for name, version in installed.items())
    wanted = _wanted_runtime()
    if not installed:
        yield Finding("onnxruntime", "not installed", f"pip install {wanted}")
        return
    if len(installed) > 1:
        fix = f"pip uninstall -y {' '.join(installed)} && pip install {wanted}"
        yield Finding("onnxruntime", f"{named}: they overwrite each other's files", fix)
    own = wanted if wanted in installed else next(iter(installed))
    try:
        import onnxruntime

        version = str(onnxruntime.__version__)
    except Exception as e:
        yield Finding("onnxruntime", f"{named}: no import ({one_line(e)})", f"pip install --force-reinstall {own}")
        return
    if len(installed) == 1:
        fix = "" if version == installed[own] else f"pip install --force-reinstall {own}"
        found = f"{named}, but the files are those of {version}" if fix else f"{named}{_built_for()}"
        yield Finding("onnxruntime", found, fix)
    yield from _providers(onnxruntime, own)


def _wanted_runtime() -> str:
    """The distribution that this project requires on this kind of machine (pyproject.toml)."""
    with_cuda = _version(SERVER) is None and platform.machine() in ("x86_64", "AMD64") and platform.system() != "Darwin"
    return "onnxruntime-gpu" if with_cuda else "onnxruntime"


def _providers(onnxruntime: Any, installed: str) -> Iterator[Finding]:
    """Each provider that the installed package has been built with, by whether a graph runs on it."""
    providers, gpu = onnxruntime.get_available_providers(), _has_torch() and torch.cuda.is_available()
    for provider in providers:
        works = runs_on(onnxruntime, provider)
        fix = _cuda_fix() if gpu and not works and provider == "CUDAExecutionProvider" else ""
        name = provider.removesuffix("ExecutionProvider")
        why = "its libraries are not there" if gpu else "torch sees no device" if _has_torch() else "torch is not here"
        yield Finding(f"  {name}", "works" if works else f"does not run here: {why}", fix)
    if gpu and "CUDAExecutionProvider" not in providers:
        fix = f"pip uninstall -y {installed} && pip install onnxruntime-gpu"
        yield Finding("  CUDA", f"is not in the installed {installed}, though torch sees a device", fix)


def _built_for() -> str:
    """The CUDA that the installed ONNX Runtime needs, where it needs one."""
    built = importlib.import_module("onnxruntime.capi.build_and_package_info")
    version = getattr(built, "cuda_version", "")
    return f", built for CUDA {version}" if version else ""


def _cuda_fix() -> str:
    has = f"torch brings {torch.version.cuda}" if torch.version.cuda else "torch brings none"
    return (
        f"this onnxruntime-gpu{_built_for().replace(', built', ' is built')} and cuDNN 9, {has}: "
        "install the two for one CUDA (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html)"
    )


def _backends() -> Iterator[Finding]:
    """Whether every backend rebuilds the same bits of a few thousand weights of each operator that a file may have."""
    record = _examined()
    for name in available() if _has_torch() else [name for name in HOST if BACKENDS[name].is_available()]:
        if name == "native":
            yield from _vectors(record)
            continue
        yield _rebuilt(f"backend {name}", "", record, name)
    if compiled.requested_kind() == compiled.NUMPY:
        yield Finding("backend native", f"left out, as {compiled.VECTORS}={compiled.NUMPY} asks")
    elif not BACKENDS["native"].is_available():
        instead = "torch" if _has_torch() else "NumPy"
        yield Finding(
            "backend native", f"not compiled, {instead} serves instead; with GCC or clang, install again for speed"
        )


def _examined() -> Record:
    """Weights of operators 1 and 2, from a constant and from seeded starts."""
    z = np.arange(-100, 100, dtype=np.int32)
    operators = HadamardBlocks.sized(9_999, 200, 7), ScatteredBlocks.sized(5_000, 200, 7, group=1)
    entries = Coded(0.0078125), Coded(0.0078125, 1, Seeded(0.0625))
    layout = Layout((TensorSpec("v", "F32", (9_999,)), TensorSpec("w", "F32", (5_000,))))
    return Record(7, layout, tuple(Group(op, 8, z) for op in operators), entries)


def _vectors(record: Record) -> Iterator[Finding]:
    """Every kind of vectors that the compiled part has for this processor, that which is taken first."""
    taken = compiled.selected_kind()
    for kind in (taken, *(kind for kind in reversed(compiled.available_kinds()) if kind != taken)):
        note = f" with {kind} vectors{', which are taken' if kind == taken else ''}"
        with compiled.force_kind(kind):
            yield _rebuilt("backend native", note, record, "native")


def _rebuilt(title: str, note: str, record: Record, backend: str) -> Finding:
    """Whether a backend rebuilds those weights."""
    try:
        same = _digest(record, backend).hex() == WEIGHTS
    except Exception as e:
        fix = "the device does not compute with this torch: install a torch that is built for it"
        return Finding(title, f"fails{note} ({one_line(e)})", fix)
    fix = "" if same else "report this machine: its arithmetic differs from that of others"
    return Finding(title, f"{'rebuilds the right bits' if same else 'rebuilds OTHER BITS'}{note}", fix)


def _digest(record: Record, backend: str) -> bytes:
    """The digest of the record's weights as a backend rebuilds them; without torch, one of HOST."""
    if _has_torch():
        from subcompress.rebuild.expand import digest_of, expand

        return digest_of(record, expand(record, backend))
    with compiled.force_kind(compiled.NUMPY if backend == "numpy" else ""):
        state = arrays.rebuild(record, check=False)
    return weights_digest(record.layout, {name: raw_bytes(array) for name, array in state.items()})


HOST = "numpy", "native"
"""The backends that need no torch."""

WEIGHTS = "8d4bbe379e4367990f7a34d4a596f6b0"
"""The digest of those weights on every machine."""

CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": _versions,
    "torch": _torch,
    "triton": _triton,
    "onnxruntime": _onnx_runtime,
    "subcompress": _backends,
}
"""The checks, by the package to install again if a check itself fails."""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
