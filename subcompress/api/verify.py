"""verify: whether every backend rebuilds the bits that were packed, and what the metric is of what they make."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subcompress import format
from subcompress.data import Data
from subcompress.data.splits import as_data, batches, call, without_graph
from subcompress.data.targets import counts
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.onnx.session import choose_graph_device, require_device
from subcompress.rebuild.backends import available
from subcompress.rebuild.streaming import stream
from subcompress.subspace.unwrapping import fitting
from subcompress.support.devices import AUTO
from subcompress.training.preflight import check_first_of
from subcompress.training.tasks import LOSSES, Loss, Metric, Task, evaluate

RUNTIME, TORCH = "ONNX Runtime", "torch"


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        backends: For each backend, whether its weights have the file's digest.
        test_accuracy: The value, if the metric is the accuracy.
        metric: The name of the metric on the test split, with data.
        value: Its value.
        engine: What computed the outputs: ONNX Runtime, or torch if there is no graph.
        note: Why there is no graph.
    """

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
    data: Data | Sequence[Dataset[Any]] | None = None,
    module: nn.Module | None = None,
    *,
    base: Any = None,
    device: str = AUTO,
    loss: str | Loss | None = None,
    metric: str | Metric | None = None,
    done: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Verification:
    """Rebuild the weights with every backend of this machine and compare each with the digest in the file.

    With `data`, the network is also measured on the test split: in ONNX Runtime at batch size 1, or in torch if it has
    no graph. It is not measured if the weights are wrong.

    Args:
        path: A packed file.
        data: Data to measure the network on, as for `fit`.
        module: The network, to trace a graph of; needed with `data`.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        device: The device that computes the metric: auto, cpu or cuda. auto chooses CUDA if it works.
        loss: As given to `fit`.
        metric: As given to `fit`. By default the metric that goes with the loss.
        done: Called from any thread, again and again, with the number of bytes that were checked since the last call.
            Each backend checks `dense_bytes` in total.
        say: Called with a line that says which device `auto` chose.

    Returns:
        Which backends agree, and the metric.

    Raises:
        SubcompressError: The file cannot be read, the device does not exist, or the data do not fit the network.
    """
    if device != AUTO:
        require_device(device)
    record, _ = format.read(path, base)
    backends = {name: stream(record, backend=name, done=done) == record.digest for name in available()}
    found = Verification(backends, record.digest.hex())
    if data is None or not found.ok:
        return found
    if module is None:
        raise SubcompressError("verify needs the network to measure the metric: give --model, or leave --data out")
    on = choose_graph_device(device)
    if say is not None:
        say(on.line)
    task = Task.suiting(data := as_data(data), loss, metric)
    told = data.loss is not None or not loss is metric is None
    return _measured(found, record, module, data, task, told=told, device=on.name)


def _measured(
    found: Verification, record: Record, module: nn.Module, data: Data, task: Task, *, told: bool, device: str
) -> Verification:
    """With the metric on the test split. told: somebody chose the task."""
    from subcompress.api.load import load_record

    module = load_record(record, fitting(module, record.layout))
    split = task.prepare_labels(data).test
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
    """Raise SubcompressError if the first examples do not go through the network and the metric."""
    if not told:
        _, y = next(batches(split, 1, order=torch.arange(1), seed=0))
        if not isinstance(y, Tensor) or not counts(y):
            raise SubcompressError(
                "accuracy needs labels that are classes numbered from 0, and these data have others: give "
                "--loss and --metric as for fit, or leave --data out"
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
        like = without_graph(lambda: call(module, x))
        return evaluate(InRuntime(graph, record.facts, like, device), split, task, batch_size=1), ""


def _value_in_torch(module: nn.Module, split: Dataset[Any], task: Task, device: str) -> float:
    before = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    try:
        return evaluate(module.to(device), split, task)
    finally:
        module.to(before)
