"""Building compact ONNX graphs: short names, no node names, every constant once."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subcompress.onnx.tracing import OPSET

_PACKED = {
    np.dtype(np.int64): "int64_data",
    np.dtype(np.int32): "int32_data",
    np.dtype(np.uint64): "uint64_data",
}
"""Tensor fields in which small integers take one or two bytes each, instead of eight or four."""


def short_names(taken: Iterable[str]) -> Iterator[str]:
    """Yield identifiers of one character, then of two, ..., that are not taken."""
    used = set(taken)
    for length in itertools.count(0):
        for first in string.ascii_letters:
            for letters in itertools.product(string.ascii_letters + string.digits, repeat=length):
                if (name := first + "".join(letters)) not in used:
                    yield name


DOMAIN = "subcompress"
"""The domain of the functions that a graph defines and uses. They consist of standard operators."""


class Nodes:
    """A list of nodes and constants in order of creation; calling it with an operator's name adds one."""

    def __init__(self, names: Iterator[str]) -> None:
        self.names = names
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._taken: Any = np.array(True)
        self._mark = ""

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or a list of names if it has several.

        Inputs are names, or values, which become constants: Python integers and lists of them int64, NumPy arrays as
        they are.
        """
        given = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        found = [next(self.names) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, given, found, **attributes))
        return found if outputs > 1 else found[0]

    def constant(self, value: Any) -> str:
        """Return the name of the constant, adding it if it is new."""
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.asarray(value, np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            tensor = numpy_helper.from_array(array, next(self.names))
            packed = _PACKED.get(array.dtype)
            if packed is not None and array.size and array.min() >= 0 and array.max() < 1 << 35:
                tensor.ClearField("raw_data")
                getattr(tensor, packed).extend(array.reshape(-1).tolist())
            self.constants.append(tensor)
            self._known[key] = tensor.name
        return self._known[key]

    def rename(self, value: str, name: str) -> None:
        """Rename the output of a node that nothing reads yet."""
        maker = next(node for node in reversed(self.nodes) if value in node.output)
        maker.output[list(maker.output).index(value)] = name

    def function(self, name: str, inputs: int, build: Callable[..., list[str]]) -> None:
        """Define an operator. `build` gets a Nodes, to which it adds nodes, and the names of the inputs."""
        body = Nodes(short_names(()))
        given = [next(body.names) for _ in range(inputs)]
        outputs = build(body, *given)
        constants = [helper.make_node("Constant", [], [c.name], value=c) for c in body.constants]
        for node in constants:
            node.attribute[0].t.name = ""
        opset = [helper.make_opsetid("", OPSET)]
        self.functions.append(helper.make_function(DOMAIN, name, given, outputs, constants + body.nodes, opset))

    def later(self, build: Callable[[], list[str]]) -> list[str]:
        """Put the nodes that `build` adds into a branch that is always taken; return the names of its float32 values.

        This saves memory. ONNX Runtime folds constants in up to ten passes and frees unused values only between passes.
        It folds a branch in place if the condition and the inputs are known. But in the same pass, later branches do
        not see values of more than 127 bytes that a branch returned, so they have to wait for the next pass. Each
        branch therefore returns such a value, the mark, and the condition of the next branch is computed from it. This
        was measured with 1.31. A runtime that folds in another way needs more memory and gives the same values.
        """
        outside, self.nodes = self.nodes, []
        if not self._mark:
            self._mark = self("Expand", np.float32(0), [64])
            outside, self.nodes = outside + self.nodes, []
        mark = self("Neg", self._mark)
        inside = [*build(), mark, self("Cast", self("Size", mark), to=TensorProto.BOOL)]
        then, self.nodes = self.nodes, []
        never = [self("Identity", np.float32(0)) for _ in inside[:-1]] + [self("Identity", self._taken)]
        other, self.nodes = self.nodes, outside
        branches = {"then_branch": _branch(then, inside), "else_branch": _branch(other, never)}
        *found, self._mark, self._taken = self("If", self._taken, outputs=len(inside), **branches)
        return found


def _branch(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
    kinds = [TensorProto.FLOAT] * (len(outputs) - 1) + [TensorProto.BOOL]
    values = [helper.make_tensor_value_info(k, t, None) for k, t in zip(outputs, kinds, strict=True)]
    return helper.make_graph(nodes, "b", [], values)
