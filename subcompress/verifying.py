"""verify: whether every backend rebuilds the bits that were packed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from subcompress import format
from subcompress.backends import available
from subcompress.data import Data
from subcompress.data.held import Held
from subcompress.devices import AUTO
from subcompress.errors import SubcompressError
from subcompress.record import Record
from subcompress.session import chosen_for_graphs, require_device
from subcompress.streaming import stream
from subcompress.tasks import Task


@dataclass(frozen=True)
class Verification:
    """backends: name -> whether its weights have the file's digest; test_accuracy: in ONNX Runtime, with data."""

    backends: dict[str, bool]
    digest: str
    test_accuracy: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every backend agrees."""
        return all(self.backends.values())


def verify(
    path: str | Path,
    data: Data | None = None,
    module: nn.Module | None = None,
    *,
    base: Any = None,
    device: str = AUTO,
    done: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Verification:
    """Rebuild the weights on every backend of this machine, in bounded memory, and compare each with the digest in the
    file.

    With data, and the module to trace, the accuracy on the test split again, in ONNX Runtime at batch size 1; not where
    the weights are wrong. base: what the file stands on, where it does, see `load`. device: where ONNX Runtime computes
    that, cpu or cuda; auto is CUDA where it works, and `say` is told which. done: told the bytes of weights that are
    behind us, a few at a time, by any thread; there are `dense_bytes` for each backend. Raises SubcompressError for a
    file that cannot be read and for a device that is not there.
    """
    if device != AUTO:
        require_device(device)
    record, _ = format.read(path, base)
    backends = {name: stream(record, backend=name, done=done) == record.digest for name in available()}
    accuracy = None
    if data is not None and all(backends.values()):
        if module is None:
            raise SubcompressError("accuracy is measured on a graph, traced from the network: give it with --model")
        data = Task.of().prepare_labels(data)
        if not isinstance(data.test, Held) or not isinstance(data.test.y, Tensor) or data.test.y.ndim != 1:
            raise SubcompressError("accuracy is measured on a test split in memory, of a class each: leave --data out")
        on = chosen_for_graphs(device)
        if say is not None:
            say(on.line)
        accuracy = onnx_accuracy(record, module, data.test, on.name)
    return Verification(backends, record.digest.hex(), accuracy)


def onnx_accuracy(record: Record, module: nn.Module, split: Held, device: str = "cpu") -> float:
    """Fraction of the split that the exported graph puts first, one example at a time, in ONNX Runtime there."""
    from subcompress.graph import accuracy_of_graph, export
    from subcompress.unpacking import load_record

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "net.onnx"
        export(record, load_record(record, module), graph)
        return accuracy_of_graph(graph.read_bytes(), split, device)
