"""Fraunhofer's NNCodec, the reference software of ISO/IEC 15938-17 (Becking et al. 2023), on the trained network."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import time

import torch

from subcompress.errors import one_line
from subcompress.peers.bench import Bench, Row, SkippedError, fails, joined

QP = -20
"""Its quantization parameter: coarser towards zero."""


def nncodec(bench: Bench) -> list[Row]:
    """Encode and decode the dense weights."""
    try:
        library = importlib.import_module("nncodec.nn")
    except Exception as e:  # it imports much, and versions of it disagree with other packages' (numpy 2, torchvision)
        why = one_line(e, 100)
        raise SkippedError(f"nncodec cannot be imported: {why} (it wants numpy < 2 and torchvision)") from e
    module, seconds = bench.direct
    began = time.perf_counter()
    dense, quiet = module.state_dict(), contextlib.redirect_stdout(io.StringIO())
    with fails("nncodec fails on this network"), tempfile.TemporaryDirectory() as folder, quiet:
        data = bytes(library.encode(module, {"results": folder, "qp": QP, "verbose": False, "ioq": False}))
        decoded = library.decode(bytearray(data))
        state = {name: torch.as_tensor(decoded[name]).reshape(t.shape).to(t.dtype) for name, t in dense.items()}
    took = time.perf_counter() - began
    value, note = bench.value(bench.loaded(state))
    return [Row("NNCodec", bench.write("nncodec.nnc", data), value, seconds + took, joined(f"qp {QP}", note))]
