"""`verify` with data: whatever metric and input `fit` takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import cli
from networks import Field, Vae, blobs, evidence, pictures, points
from places import HELPERS
from torch import Tensor, nn

import subcompress
from subcompress import Data, SubcompressError
from subcompress.data.ragged import Ragged
from subcompress.format.facts import Facts
from subcompress.onnx import export, running
from subcompress.onnx.running import InRuntime
from subcompress.training.tasks import Task, evaluate


def packed(module: nn.Module, data: Data, folder: Path) -> Path:
    """The file of a subspace of a network, untrained."""
    sub = subcompress.Subspace.of(module, 10)
    with torch.no_grad():
        sub.z.normal_(generator=torch.Generator().manual_seed(0))
    sub.round(4)
    subcompress.pack(sub, folder / "net.safetensors", data.facts)
    return folder / "net.safetensors"


def correlation(outputs: Tensor, y: Tensor) -> Tensor:
    """Of everything at once: it is no mean over examples."""
    return torch.corrcoef(torch.stack([outputs.reshape(-1), y.reshape(-1)]))[0, 1]


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> tuple[Path, nn.Module, InRuntime]:
    """A file of a field, the field, and its graph."""
    folder, module = tmp_path_factory.mktemp("field"), Field()
    file = packed(module, points(), folder)
    record, _ = subcompress.format.read(file)
    subcompress.load(file, module)
    export(record, module, folder / "net.onnx")
    return file, module, InRuntime(folder / "net.onnx", record.facts, module(torch.zeros(1, 2)))


@pytest.mark.parametrize("metric", [correlation, "torchmetrics:R2Score", "l1", None])
def test_a_graph_is_measured_by_every_metric(field, metric):
    _, module, graph = field
    task = Task.of("mse", metric)
    value = evaluate(graph, points().test, task, batch_size=1)
    assert value == pytest.approx(evaluate(module, points().test, task), rel=1e-4)


def test_verify_takes_the_metric_of_the_fit(field, monkeypatch):
    file, module, _ = field
    monkeypatch.setattr(
        "subcompress.onnx.export", lambda record, net, path: shutil.copy(file.with_name("net.onnx"), path)
    )
    found = subcompress.verify(file, points(), module, loss="mse", metric=correlation)
    assert found.value == pytest.approx(evaluate(module, points().test, Task.of("mse", correlation)), rel=1e-4)
    assert (found.metric, found.engine, found.test_accuracy, found.note) == ("correlation", "ONNX Runtime", None, None)


def test_without_a_task_the_labels_must_be_classes(field):
    file, module, _ = field
    with pytest.raises(SubcompressError, match="these data have others: give --loss and --metric as for fit"):
        subcompress.verify(file, points(), module)


def test_data_that_do_not_fit_are_refused(field):
    file, module, _ = field
    with pytest.raises(SubcompressError, match="a batch of the test split does not pass through the model"):
        subcompress.verify(file, blobs(), module)


class Words(nn.Module):
    """Token ids and a mask, of any length, by name -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        return (self.embed(input_ids) * mask).sum(1) / mask.sum(1)


def test_dicts_of_unequal_lengths(tmp_path):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(12, (int(n),), generator=g) for n in torch.randint(1, 9, (24,), generator=g)]
    split = Ragged({"input_ids": ids}, torch.randint(3, (24,), generator=g))
    module, data = Words(), Data(split, split, split)
    found = subcompress.verify(packed(module, data, tmp_path), data, module)
    assert (found.engine, found.test_accuracy) == ("ONNX Runtime", evaluate(module, split, Task.of()))


class Uneven(torch.utils.data.Dataset):
    """Sequences of their own lengths, which its collate pads: nothing says what one input looks like."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((1 + i % 5, 4), i / 20), i % 3

    def collate(self, items) -> tuple[Tensor, Tensor]:
        x = nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
        return x, torch.tensor([y for _, y in items])


class Pooled(nn.Linear):
    """(N, any, 4) -> (N, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sum(1))


def test_without_a_graph_torch_measures_and_says_why(tmp_path):
    module, data = Pooled(4, 3), Data(Uneven(), Uneven(), Uneven())
    found = subcompress.verify(packed(module, data, tmp_path), data, module)
    assert (found.engine, found.value) == ("torch", evaluate(module, data.test, Task.of()))
    assert "a graph needs the input's shape" in found.note


def test_a_loss_that_takes_the_module_is_measured_in_torch(tmp_path):
    module, data = Vae(), pictures()
    found = subcompress.verify(packed(module, data, tmp_path), data, module, loss=evidence)
    assert found.value == evaluate(module, data.test, Task.of(evidence))
    assert (found.metric, found.note) == ("loss", "the loss takes the module itself")


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HELPERS)
    packed(Vae(), pictures(), tmp_path)
    args = ("verify", "net.safetensors", "--model", "networks:Vae", "--data", "networks:pictures")
    result = cli(*args, "--loss", "networks:evidence")
    assert result.exit_code == 0, result.output
    assert "test loss" in result.stdout and ", in torch" in result.stdout
    assert "no graph was measured: the loss takes the module itself" in result.stderr
    found = json.loads(cli(*args, "--loss", "networks:evidence", "--json").stdout)
    assert found["metric"] == "loss" and found["engine"] == "torch"
    said = cli("verify", "net.safetensors", "--data", "digits").stderr
    assert "does not show which network it is: give it with --model" in said


class Stub:
    """A session that gives its inputs back, and a complex number as a pair."""

    def __init__(self, path: Path, device: str) -> None:
        self.inputs = ["input_0", "input_1"]
        assert device == "cpu"

    def __call__(self, **named: Tensor) -> tuple[Tensor, ...]:
        assert named.keys() == {"input_0", "input_1"}
        return named["input_0"], named["input_1"]


def test_outputs_are_arranged_as_the_networks(monkeypatch):
    monkeypatch.setattr(running, "Session", Stub)
    facts = Facts.from_json({"inputs": [["", "F32", [2]], ["", "F32", [2]], ["", "F32", [1]]]})
    like = {"a": [torch.zeros(1)], "b": (torch.zeros(1, dtype=torch.complex64), "plain")}
    graph = InRuntime(Path("net.onnx"), facts, like)
    found = graph(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1))
    assert found["a"][0].tolist() == [[1.0, 2.0]]
    assert found["b"][0].tolist() == [3 + 4j] and found["b"][1] == "plain"
