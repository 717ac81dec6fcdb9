"""Traces that were made before: torch takes a second for each, and tests trace the same few networks over and over."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import onnx
from filelock import FileLock
from torch import Tensor, nn

from subcompress.format.facts import Facts
from subcompress.tensors.layout import raw_bytes

LASTING = ("builtins", "collections", "torch", "networks", "oddities", "subcompress_models", "subcompress", "numpy")
"""Modules whose classes are the same in every process of a run."""


class _Key(pickle.Pickler):
    """Writes what a trace depends on: a module with all that it holds, tensors by values and by who shares them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.places: dict[int, int] = {}

    def reducer_override(self, held: Any) -> Any:
        """Raises pickle.PicklingError for code that may be other code in another test."""
        if isinstance(held, Tensor):
            values = hashlib.sha256(raw_bytes(held.detach().contiguous())).digest()
            place = self.places.setdefault(held.data_ptr(), len(self.places))
            layout = (type(held).__name__, str(held.dtype), tuple(held.shape), held.stride(), held.requires_grad)
            return tuple, ([*layout, place, values],)
        if not isinstance(held, type | FunctionType):
            return NotImplemented
        if held.__module__.partition(".")[0] not in LASTING or getattr(held, "__closure__", None):
            raise pickle.PicklingError(held)
        if isinstance(held, type):
            return NotImplemented
        code = held.__code__
        return tuple, ([held.__qualname__, code.co_code, code.co_names, repr(code.co_consts)],)


def key_of(module: nn.Module, facts: Facts) -> str:
    """A digest that means the same in every process of a run; nothing where there is none."""
    file = io.BytesIO()
    try:
        _Key(file).dump((module, facts))
    except Exception:  # of whatever a module holds
        return ""
    return hashlib.sha256(file.getvalue()).hexdigest()


def remembered(folder: Path, trace: Callable[[nn.Module, Facts], onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """`trace`, which does the same only once for all processes that share a folder."""

    def traced(module: nn.Module, facts: Facts) -> onnx.ModelProto:
        if not (key := key_of(module, facts)):
            return trace(module, facts)
        path = folder / key
        with FileLock(folder / f"{key}.lock"):
            if not path.exists():
                path.write_bytes(trace(module, facts).SerializeToString())
        return onnx.load_from_string(path.read_bytes())

    return traced
