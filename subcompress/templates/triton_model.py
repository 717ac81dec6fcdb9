"""The graph beside this file behind Triton's Python backend, with NumPy and ONNX Runtime.

A graph of kilobytes holds a seed and small integers: ONNX Runtime computes the weights from them at the start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What Triton loads: a session on model.onnx, on the CPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph. args: Triton's description of the model. Raises TritonModelException if it does not open."""
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is said to who asked
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a core is more use to the server
        path = Path(__file__).with_name("model.onnx")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its exceptions have no common base of their own
            reason = f"onnxruntime {onnxruntime.__version__} cannot open {path.name}: {one_line(e)}"
            raise triton.TritonModelException(reason) from e
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order. Requests whose shapes agree except for the batch axis share a run."""
        responses: list[Any] = [None] * len(requests)
        alike: dict[Any, list[int]] = {}
        fed: dict[int, dict[str, np.ndarray]] = {}
        for i, request in enumerate(requests):
            found = {name: triton.get_input_tensor_by_name(request, name) for name in self.inputs}
            if missing := [name for name, tensor in found.items() if tensor is None]:
                responses[i] = refusal(f"takes {', '.join(self.inputs)}; {missing[0]} is missing")
                continue
            fed[i] = {name: tensor.as_numpy() for name, tensor in found.items()}
            key = tuple((x.dtype.str, x.shape[1:]) for x in fed[i].values()) if self.batched else i
            alike.setdefault(key, []).append(i)
        for members in alike.values():
            for i, response in zip(members, self.answers([fed[i] for i in members])):  # noqa: B905  Python 3.8 has no strict
                responses[i] = response
        return responses

    def answers(self, batch: list[dict[str, np.ndarray]]) -> list[Any]:
        """A response for each: from one run if that succeeds, else each from its own, so that one that ONNX Runtime
        refuses spoils no other."""
        if len(batch) > 1:
            sizes = [len(next(iter(x.values()))) for x in batch]
            ends = np.cumsum(sizes)
            try:
                outputs = self.run({name: np.concatenate([x[name] for x in batch]) for name in self.inputs})
                if all(output.ndim and len(output) == ends[-1] for output in outputs):
                    parts = [np.split(output, ends[:-1]) for output in outputs]
                    return [self.response([part[i] for part in parts]) for i in range(len(batch))]
            except Exception:
                pass  # whose fault it was shows when each is run by itself
        return [self.answer(x) for x in batch]

    def answer(self, fed: dict[str, np.ndarray]) -> Any:
        """The response to one request alone."""
        try:
            return self.response(self.run(fed))
        except Exception as e:
            return refusal(f"ONNX Runtime refuses this input: {one_line(e)}")

    def run(self, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of the graph."""
        return [np.asarray(output) for output in self.session.run(self.outputs, fed)]

    def response(self, outputs: list[np.ndarray]) -> Any:
        """Outputs as Triton takes them."""
        named = zip(self.outputs, outputs)  # noqa: B905
        return triton.InferenceResponse([triton.Tensor(name, np.ascontiguousarray(x)) for name, x in named])


def refusal(reason: str) -> Any:
    """A response that says what was wrong, in one line."""
    return triton.InferenceResponse([], triton.TritonError(reason))


def one_line(e: Exception) -> str:
    """What an exception says, on one line of at most 300 characters."""
    return " ".join(str(e).split())[:300] or type(e).__name__
