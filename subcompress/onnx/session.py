"""Inference from a packed file, or from an .onnx file of subcompress: ONNX Runtime on the CPU or on a CUDA device.

The weights of a packed file are rebuilt where they are used. On a CUDA device, ONNX Runtime gets the tensors that torch
rebuilt there, without a copy through the host's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress import format
from subcompress.errors import SubcompressError, one_line
from subcompress.onnx.runtime import PLAIN, PROVIDERS, How, give_back, open_graph, runs_on
from subcompress.rebuild.expand import expand, expand_checked
from subcompress.support.devices import AUTO, Device, choose_device
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import array_of


class Session:
    """A network ready to run in ONNX Runtime. `session(x)` returns what the module returns, as tensors on the device.

    Use it from one thread at a time.

    Args:
        path: A packed .safetensors file, or an .onnx file that `unpack` wrote.
        module: The network of a packed file. It is not changed.
        base: The base that a packed file was fine-tuned from, if it has one; see `load`.
        device: auto, cpu or cuda. auto chooses CUDA if it works. A given device that does not exist is an error.
        check: Whether to compare the weights with the digest in the file. This copies them to the host.
        tf32: Whether a CUDA device may round the inputs of matrix products to 10 bits.

    Raises:
        SubcompressError: The file cannot be read, the module has other tensors or cannot be exported, the device does
            not exist, or ONNX Runtime is too old for the file.
    """

    def __init__(
        self,
        path: str | Path,
        module: nn.Module | None = None,
        *,
        base: Any = None,
        device: str = "cpu",
        check: bool = False,
        tf32: bool = False,
    ) -> None:
        if device == AUTO:
            device = choose_graph_device(device).name
        require_device(device)
        self.device = torch.device(device)
        self._weights: dict[str, Tensor] = {}
        if Path(path).suffix == ".onnx":
            self._session = open_graph(Path(path), device, how=_how(device, tf32))
            give_back()
        else:
            self._session = self._of_packed(path, module, base, check, tf32)
        self._takes = {i.name: i for i in self._session.get_inputs() if i.name not in self._weights}
        self.inputs = list(self._takes)
        self.outputs = [o.name for o in self._session.get_outputs()]
        self._kinds = [o.type for o in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        for name, tensor in self._weights.items():
            _bind(self._binding, name, tensor)

    def _of_packed(self, path: str | Path, module: nn.Module | None, base: Any, check: bool, tf32: bool) -> Any:
        """A session on the graph of the module, its weights those of the file, rebuilt on the device."""
        from subcompress.onnx.network import Network

        record, _ = format.read(path, base)
        if module is None:
            raise SubcompressError("a session on packed weights traces the network: give the module")
        network = Network.of(module, record.layout)
        rebuilt = expand_checked if check else expand
        state = rebuilt(record)
        graph = network.weightless(state, record.facts, state.keys() if self.device.type == "cuda" else ())
        if self.device.type == "cuda":
            state = rebuilt(record, "cuda")
        if self.device.type == "cuda":
            self._weights = {name: _real(state[name]).contiguous() for name in graph.names}
            return open_graph(graph.data, "cuda", how=_how("cuda", tf32))
        session = open_graph(graph.data, "cpu", {name: array_of(state[name]) for name in graph.names})
        give_back()
        return session

    def __call__(self, *inputs: Tensor | np.ndarray, **named: Tensor | np.ndarray) -> Any:
        """The outputs for a batch: a tensor on the device, or a tuple where the network gives several; complex numbers
        come as pairs.

        inputs: in the order of `self.inputs`, or by name. Raises SubcompressError if one is missing or of a shape or
        dtype that the network does not take.
        """
        given = {**dict(zip(self.inputs, inputs, strict=False)), **named}
        twice = len(given) < len(inputs) + len(named)
        if len(inputs) > len(self.inputs) or twice or set(given) != set(self.inputs):
            raise SubcompressError(
                f"a session takes {', '.join(self.inputs)}; got {len(inputs)} by position and "
                f"{', '.join(named) or 'none'} by name: give each once"
            )
        tensors = {name: self._placed(name, x) for name, x in given.items()}
        if len(sizes := {len(tensor) for tensor in tensors.values()}) > 1:
            raise SubcompressError(
                f"all inputs must have the same batch size; got {', '.join(map(str, sorted(sizes)))}"
            )
        binding = self._binding
        for name, tensor in tensors.items():
            _bind(binding, name, tensor)
        for name in self.outputs:
            binding.bind_output(name, self.device.type)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as e:  # its exceptions have no common base of their own
            raise SubcompressError(f"ONNX Runtime refuses this input ({one_line(e)})") from e
        found = [torch.utils.dlpack.from_dlpack(value) for value in binding.get_outputs()]
        # DLPack gives ONNX Runtime's truth values as bytes.
        found = [t.to(torch.bool) if k == "tensor(bool)" else t for t, k in zip(found, self._kinds, strict=True)]
        return found[0] if len(found) == 1 else tuple(found)

    def _placed(self, name: str, x: Any) -> Tensor:
        """Return an input as a dense tensor on the device. Raises SubcompressError if the network does not accept
        it."""
        try:
            array = torch.from_numpy(np.require(x, None, ["C", "W"])) if isinstance(x, np.ndarray) else x
            tensor = torch.as_tensor(array).detach().to(self.device).contiguous()
        except Exception as e:
            raise SubcompressError(
                f"inputs must be dense tensors or arrays of numbers; {name} is not ({one_line(e)})"
            ) from e
        kind, sizes = self._takes[name].type, self._takes[name].shape  # a size that may vary is a name
        fits = len(sizes) == tensor.ndim and all(
            size == n or not isinstance(size, int) for size, n in zip(sizes, tensor.shape, strict=True)
        )
        if not fits or _ONNX_TYPES.get(tensor.dtype, ("",))[0] != kind:
            wanted = f"{kind.removeprefix('tensor(').removesuffix(')')} [{', '.join(map(str, sizes))}]"
            given = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise SubcompressError(f"input {name} must be {wanted}; got {given}: convert it")
        return tensor


def _how(device: str, tf32: bool) -> How:
    return How(stream=torch.cuda.current_stream().cuda_stream, tf32=tf32) if device == "cuda" else PLAIN


def choose_graph_device(asked: str) -> Device:
    """Where ONNX Runtime computes: by `auto` on CUDA where torch and ONNX Runtime both do, else on the CPU. Raises
    SubcompressError for a device that is not there."""
    import onnxruntime

    if asked != AUTO:
        require_device(asked)
        return Device(asked, f"device: {asked}, as asked")
    found = choose_device(AUTO)
    if found.name == "cpu" or runs_on(onnxruntime, PROVIDERS["cuda"]):
        return Device(found.name.partition(":")[0], found.line)
    return Device(
        "cpu",
        "device: cpu, because ONNX Runtime does not run on CUDA here, though torch does: `subcompress doctor` says "
        "what is missing",
    )


def require_device(device: str) -> None:
    """Raise SubcompressError unless torch can compute there."""
    if device not in PROVIDERS:
        raise SubcompressError(
            f"device must be one of {', '.join(PROVIDERS)}; got {device!r}{suggestion(device, PROVIDERS)}"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise SubcompressError(
            f"device cuda needs a GPU that torch can use; torch {torch.__version__} finds none: "
            "`subcompress doctor` says what is missing; or give cpu"
        )


def _real(tensor: Tensor) -> Tensor:
    """Convert complex numbers to pairs, as in ONNX."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _bind(binding: Any, name: str, tensor: Tensor) -> None:
    at, kind = tensor.device, _ONNX_TYPES[tensor.dtype][1]
    binding.bind_input(name, at.type, at.index or 0, kind, list(tensor.shape), tensor.data_ptr())


_ONNX_TYPES: dict[torch.dtype, tuple[str, Any]] = {
    torch.float32: ("tensor(float)", np.float32),
    torch.float16: ("tensor(float16)", np.float16),
    torch.float64: ("tensor(double)", np.float64),
    torch.bfloat16: ("tensor(bfloat16)", 16),  # TensorProto.BFLOAT16: NumPy has none
    torch.int64: ("tensor(int64)", np.int64),
    torch.int32: ("tensor(int32)", np.int32),
    torch.int16: ("tensor(int16)", np.int16),
    torch.int8: ("tensor(int8)", np.int8),
    torch.uint8: ("tensor(uint8)", np.uint8),
    torch.bool: ("tensor(bool)", np.bool_),
}
"""torch's dtype -> ONNX Runtime's name for it, and the element type that it is given."""
