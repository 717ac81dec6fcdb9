"""The network trained directly, as float32: safetensors, the same compressed losslessly, and ONNX."""

from __future__ import annotations

import gzip
import importlib
import lzma
import time

import safetensors.torch

from subcompress.peers.bench import Bench, Row, SkippedError, joined


def dense(bench: Bench) -> list[Row]:
    """One training, four files."""
    module, seconds = bench.direct
    state = {name: t.contiguous().clone() for name, t in module.state_dict().items()}
    data = safetensors.torch.save(state)
    value, note = bench.value(module)
    rows = [Row("dense, safetensors", bench.write("dense.safetensors", data), value, seconds, note)]
    for name, suffix, pack in (("gzip -9", "gz", _gzip), ("xz -9", "xz", _xz), ("zstd -19", "zst", _zstd)):
        began = time.perf_counter()
        try:
            size = bench.write(f"dense.safetensors.{suffix}", pack(data))
        except SkippedError as e:
            bench.listener.note(f"{name}: skipped, {e}")
            continue
        rows.append(Row(f"dense, {name}", size, value, seconds + time.perf_counter() - began, joined("lossless", note)))
    try:
        rows.append(Row("dense, ONNX", bench.write("dense.onnx", bench.graph(module)), value, seconds, note))
    except SkippedError as e:
        bench.listener.note(f"dense, ONNX: skipped, {e}")
    return rows


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9)


def _zstd(data: bytes) -> bytes:
    for name in ("compression.zstd", "zstandard"):
        try:
            found: bytes = importlib.import_module(name).compress(data, 19)
            return found
        except ImportError:
            continue
    raise SkippedError("no zstd in this Python: pip install zstandard")
