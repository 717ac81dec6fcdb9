"""Opening graphs in ONNX Runtime on exactly one device. Does not need torch."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subcompress.errors import SubcompressError, one_line
from subcompress.onnx.outside import check_outside

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Device -> the name of its provider in ONNX Runtime."""

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""The session setting for the folder of external data, for a graph that is given in memory."""

BFLOAT16 = 16
"""TensorProto.BFLOAT16: NumPy has none."""


@dataclass(frozen=True)
class How:
    """How a session runs.

    threads: the number of threads of one run; 0 means as many as there are cores. spin: whether idle threads wait for
    work in a busy loop. arena: whether the session keeps the memory of its largest run. folder: the folder of files
    that hold initializers. stream: the CUDA stream on which weights are written. tf32: whether products on CUDA may
    round their inputs to 10 bits.
    """

    threads: int = 0
    spin: bool = True
    arena: bool = True
    folder: Path | None = None
    stream: int | None = None
    tf32: bool = False


PLAIN = How()


def open_graph(
    model: Path | bytes, device: str = "cpu", weights: Mapping[str, np.ndarray] | None = None, how: How = PLAIN
) -> Any:
    """An InferenceSession on the given device and on no other. weights: values of external initializers.

    Raises SubcompressError if ONNX Runtime cannot open the graph on that device, or if the graph reads files that it
    may not read or that have changed (`check_outside`).
    """
    import onnxruntime

    if not isinstance(model, bytes):
        check_outside(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said below
    options.intra_op_num_threads = how.threads
    options.enable_cpu_mem_arena = how.arena
    if not how.spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if how.folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(how.folder))
    if weights:
        held = ort_values(weights)
        options.add_external_initializers(list(held), list(held.values()))
    own = {"use_tf32": int(how.tf32), "user_compute_stream": str(how.stream)} if device == "cuda" else {}
    provider = PROVIDERS[device]
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(provider, own)],
            enable_fallback=False,
        )
    except Exception as e:  # its exceptions have no common base of their own
        raise SubcompressError(_diagnosis(model, e)) from e
    if session.get_providers()[0] != provider:
        raise SubcompressError(
            f"ONNX Runtime {onnxruntime.__version__} does not run on {device} here, though torch does: "
            "`subcompress doctor` says what is missing; or give cpu"
        )
    return session


def runs_on(onnxruntime: Any, provider: str) -> bool:
    """Return whether a graph of one node runs on a provider."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
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
        onnxruntime.set_default_logger_severity(2)  # what it is from the start


def ort_values(arrays: Mapping[str, np.ndarray], bfloat16: Collection[str] | None = None) -> dict[str, Any]:
    """Wrap arrays for ONNX Runtime without copying: uint16 is BF16, and complex numbers are pairs.

    bfloat16: the names of those that are BF16; by default all of uint16, which weights are not otherwise.
    """
    from onnxruntime import OrtValue

    found = {}
    for name, array in arrays.items():
        if array.dtype == np.uint16 and (bfloat16 is None or name in bfloat16):
            found[name] = OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
        else:
            pairs = array.view(np.float32).reshape(*array.shape, 2) if array.dtype == np.complex64 else array
            found[name] = OrtValue.ortvalue_from_numpy(pairs)
    return found


def give_back() -> None:
    """Return freed memory to the system. glibc would keep it, and after constant folding it can be as much as the
    weights."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _diagnosis(model: Path | bytes, e: Exception) -> str:
    """Explain why ONNX Runtime does not open a graph: its version is too old for it, or its own message."""
    import onnx
    import onnxruntime

    what = "this graph" if isinstance(model, bytes) else str(model)
    try:
        loaded = (
            onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
        )
    except OSError:
        return f"{what} cannot be read: give an .onnx file that exists"
    except Exception:
        return f"{what} is not an ONNX file: give one that `subcompress unpack` wrote"
    needs = next((p.value for p in loaded.metadata_props if p.key == "onnxruntime"), "")
    wanted, found = _numbers(needs), _numbers(onnxruntime.__version__)
    if wanted and found < wanted:
        return f"{what} needs onnxruntime {needs[:40]}; this is {onnxruntime.__version__}: pip install -U onnxruntime"
    return f"ONNX Runtime {onnxruntime.__version__} cannot open {what} ({one_line(e)})"


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, or of a minimum version. None for a text of another form, which a file may
    contain."""
    parts = version.removeprefix(">=").split(".")[:2]
    return tuple(map(int, parts)) if all(re.fullmatch("[0-9]{1,6}", p) for p in parts) else ()
