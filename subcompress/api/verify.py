"""verify: whether every backend rebuilds the bits that were packed, and what the metric is of what they make."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subcompress import format
from subcompress.data import Data
from subcompress.data.splits import batches, call
from subcompress.data.targets import counts
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.onnx.session import chosen_for_graphs, require_device
from subcompress.rebuild.backends import available
from subcompress.rebuild.streaming import stream
from subcompress.support.devices import AUTO
from subcompress.training.preflight import check_first_of
from subcompress.training.tasks import LOSSES, Loss, Metric, Task, evaluate

RUNTIME, TORCH = "ONNX Runtime", "torch"


@dataclass(frozen=True)
class Verification:
    """backends: name -> whether its weights have the file's digest. With data: metric and value, on the test split;
    engine: what computed the outputs, ONNX Runtime, or torch where there is no graph, and note says why; test_accuracy:
    the value, where the metric is the accuracy."""

    backends: dict[str, bool]
    digest: str
    test_accuracy: float | None = None
    metric: str | None = None
    value: float | None = None
    engine: str | None = None
    note: str | None = None

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
    loss: str | Loss | None = None,
    metric: str | Metric | None = None,
    done: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Verification:
    """Rebuild the weights on every backend of this machine, in bounded memory, and compare each with the digest in the
    file.

    With data, and the module to trace, the metric on the test split again, in ONNX Runtime at batch size 1; in torch
    where the network has no graph, or the loss is the metric and takes the module itself; not where the weights are
    wrong. loss and metric: as given to `fit`, the accuracy by default. base: what the file stands on, where it does,
    see `load`. device: where the metric is computed, cpu or cuda; auto is CUDA where it works, and `say` is told which.
    done: told the bytes of weights that are behind us, a few at a time, by any thread; there are `dense_bytes` for each
    backend. Raises SubcompressError for a file that cannot be read, for a device that is not there, and for data that
    do not go through the network and the metric.
    """
    if device != AUTO:
        require_device(device)
    record, _ = format.read(path, base)
    backends = {name: stream(record, backend=name, done=done) == record.digest for name in available()}
    found = Verification(backends, record.digest.hex())
    if data is None or not found.ok:
        return found
    if module is None:
        raise SubcompressError("the metric is measured on a graph, traced from the network: give it with --model")
    on = chosen_for_graphs(device)
    if say is not None:
        say(on.line)
    task = Task.of("cross-entropy" if loss is None else loss, metric)
    return _measured(found, record, module, data, task, told=not loss is metric is None, device=on.name)


def _measured(
    found: Verification, record: Record, module: nn.Module, data: Data, task: Task, *, told: bool, device: str
) -> Verification:
    """With the metric on the test split. told: somebody chose the task."""
    from subcompress.api.unpack import load_record

    module, split = load_record(record, module), task.prepare_labels(data).test
    _check(module, split, task, told)
    value, note = _value(record, module, split, task, device)
    return replace(
        found,
        test_accuracy=value if task.is_accuracy else None,
        metric=task.metric_name,
        value=value,
        engine=TORCH if note else RUNTIME,
        note=note or None,
    )


def _check(module: nn.Module, split: Dataset[Any], task: Task, told: bool) -> None:
    """Raise SubcompressError where the first examples do not go through the network and the metric."""
    if not told:
        _, y = next(batches(split, 1, order=torch.arange(1), seed=0))
        if not isinstance(y, Tensor) or not counts(y):
            raise SubcompressError(
                "the accuracy is of classes, numbered from 0, and these data have none: give --loss and --metric as "
                "to fit, or leave --data out"
            )
    check_first_of(module, "test", split, task)


def _value(record: Record, module: nn.Module, split: Dataset[Any], task: Task, device: str) -> tuple[float, str]:
    """The metric in ONNX Runtime, one example at a time, else in torch; and why it was torch."""
    if task.metric is None and task.loss_name not in LOSSES:
        return _value_in_torch(module, split, task, device), "the loss takes the module itself"
    from subcompress.onnx import export
    from subcompress.onnx.running import InRuntime

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "net.onnx"
        try:
            export(record, module, graph)
        except SubcompressError as e:
            return _value_in_torch(module, split, task, device), str(e)
        x, _ = next(batches(split, 1, order=torch.arange(1), seed=0))
        with torch.no_grad():
            like = call(module, x)
        return evaluate(InRuntime(graph, record.facts, like, device), split, task, batch_size=1), ""


def _value_in_torch(module: nn.Module, split: Dataset[Any], task: Task, device: str) -> float:
    before = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    try:
        return evaluate(module.to(device), split, task)
    finally:
        module.to(before)
