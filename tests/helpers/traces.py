"""Traces that were made before: torch takes a second for each, and tests trace the same few networks over and over.

Only of networks whose code is the same in every test. What torch makes of one does not depend on its weights, which lie
in the graph under their names: that is seen to when a graph is kept, and a graph of other weights is given those.
"""

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

LASTING = (
    *("builtins", "collections", "numpy", "torch", "transformers"),
    *("networks", "oddities", "subcompress", "subcompress_models"),
)
"""Modules whose classes are the same in every process of a run."""


class _Key(pickle.Pickler):
    """Writes what a trace depends on: a module with all that it holds, tensors by who shares them, and by their values
    but for those whose ids are given."""

    def __init__(self, file: io.BytesIO, but: set[int]) -> None:
        super().__init__(file)
        self.but, self.places = but, dict[int, int]()

    def reducer_override(self, held: Any) -> Any:
        """Raises pickle.PicklingError for code that may be other code in another test."""
        if isinstance(held, Tensor):
            values = b"" if id(held) in self.but else hashlib.sha256(raw_bytes(held.detach().contiguous())).digest()
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


def key_of(module: nn.Module, facts: Facts, weights: bool) -> str:
    """A digest that means the same in every process of a run, nothing where there is none. weights: theirs too."""
    file = io.BytesIO()
    try:
        kept = set() if weights else {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
        _Key(file, kept).dump((module, facts))
    except Exception:  # of whatever a module holds
        return ""
    return hashlib.sha256(file.getvalue()).hexdigest()


def remembered(folder: Path, trace: Callable[[nn.Module, Facts], onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """`trace`, which does the same only once for all processes that share a folder."""

    def traced(module: nn.Module, facts: Facts) -> onnx.ModelProto:
        if not (key := key_of(module, facts, False)):
            return trace(module, facts)
        whole = folder / key_of(module, facts, True)
        with FileLock(folder / f"{key}.lock"):
            if (folder / key).exists():
                return _with_weights(onnx.load(folder / key), module)
            if not whole.exists():
                data = trace(module, facts).SerializeToString()
                same = _with_weights(onnx.load_from_string(data), module).SerializeToString() == data
                (folder / key if same else whole).write_bytes(data)
                return onnx.load_from_string(data)
        return onnx.load(whole)

    return traced


def _with_weights(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """The graph with the module's weights in place of those that it holds under their names."""
    state = module.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in state:
            tensor.raw_data = bytes(raw_bytes(state[tensor.name]))
    return model
