"""Texts and networks of transformers: padded batches, CSV files, graphs of any length, and the examples."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import cli
from lazily import needed
from places import EXAMPLES
from torch import Tensor
from torch.utils.data import Dataset

import subcompress
from subcompress import SubcompressError, format
from subcompress.data import pretrained
from subcompress.data.ragged import Ragged
from subcompress.data.splits import Data, batches
from subcompress.subspace import measuring
from subcompress.tensors.layout import Layout
from subcompress.training import loop as training
from subcompress.training.tasks import Task, evaluate

needed("transformers")


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory) -> Path:
    """The file of a fit of it on the command line."""
    folder = tmp_path_factory.mktemp("fitted")
    options = ["--d", 300, "--lr", 0.01, "--epochs", 6, "--batch-size", 16, "--threads", 1, "-o", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "STEPS", 100)  # fewer do not tell how far such a network moves
        patch.setattr(measuring, "LEAST", 20)
        result = cli("fit", "--model", f"hf:{tiny[0]}", "--data", tiny[1], *options, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test_accuracy"] > 0.8
    assert "480 train, 60 validation, 60 test texts of 2 classes" in result.stderr
    assert cli("pack", folder / "run", "-o", folder / "net.safetensors").exit_code == 0
    return folder / "net.safetensors"


# Ragged


def ragged(lengths, **more) -> Ragged:
    ids = [torch.arange(1, n + 1) + 10 * i for i, n in enumerate(lengths)]
    return Ragged({"input_ids": ids}, torch.arange(len(ids)) % 2, **more)


def test_a_batch_is_padded_to_its_longest():
    split = ragged([2, 4, 1], fills={"input_ids": 7})
    x, y = split[torch.tensor([2, 0])]
    assert x["input_ids"].tolist() == [[21, 7], [1, 2]]
    assert x["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert y.tolist() == [0, 0]
    one, label = split[1]
    assert (one["input_ids"].tolist(), one["attention_mask"].tolist(), int(label)) == ([11, 12, 13, 14], [1] * 4, 1)


def test_other_inputs_are_padded_or_stacked():
    x = {
        "input_ids": [torch.ones(2), torch.ones(3)],
        "kinds": [torch.ones(2), torch.ones(3)],
        "age": [torch.ones(1)] * 2,
    }
    batch, _ = Ragged(x, torch.zeros(2))[torch.tensor([0, 1])]
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "input_ids": (2, 3), "kinds": (2, 3), "attention_mask": (2, 3), "age": (2, 1)
    }  # fmt: skip
    with pytest.raises(SubcompressError, match="example 1 must be 1-D"):
        ragged([3, 0])


def test_training_takes_each_example_once_and_like_lengths_together():
    split = ragged([1 + (7 * i) % 40 for i in range(1000)])
    order = torch.randperm(1000)
    found = split.arranged(order, 16)
    assert sorted(found.tolist()) == list(range(1000))
    assert torch.equal(found, split.arranged(order, 16))
    assert not torch.equal(found, split.arranged(torch.randperm(1000), 16))

    def padded(o: Tensor) -> int:
        return sum(x["input_ids"].numel() for x, _ in batches(split, 16, order=o))

    assert padded(found) < 1.1 * int(split.lengths.sum()) < 0.7 * padded(order)


@pytest.mark.slow
def test_an_evaluation_in_order_of_length_is_the_same(tiny, data):
    torch.manual_seed(1)
    net, task = pretrained.load_model(tiny[0], labels=2), Task.of()
    found = evaluate(net, data.test, task)
    right = 0
    with torch.no_grad():
        for i in range(len(data.test)):
            x, y = data.test[torch.tensor([i])]
            right += int(net.eval()(**x).logits.argmax()) == int(y)
    assert found == right / len(data.test)
    order, n = ragged([1 << 13, 5]).swept(1000)
    assert (order.tolist(), n) == ([0, 1], 2)


class Items(Dataset):
    """Somebody's own data set."""

    pad = 3

    def __init__(self, split: Ragged, mask: bool = True) -> None:
        self.split, self.mask = split, mask

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int):
        x, y = self.split[i]
        return (x if self.mask else {"input_ids": x["input_ids"].tolist()}), int(y)


def test_a_data_set_of_ones_own_is_read_and_padded():
    split = ragged([2, 4, 1])
    own = Data(Items(split, mask=False), Items(split), Items(split))
    assert isinstance(own.train, Ragged)
    assert [(i.name, i.dtype, i.shape) for i in own.facts.inputs] == [
        ("input_ids", "I64", (0,)), ("attention_mask", "I64", (0,))
    ]  # fmt: skip
    x, y = own.train[torch.tensor([0, 1])]
    assert x["input_ids"].tolist() == [[1, 2, 3, 3], [11, 12, 13, 14]]
    assert y.tolist() == [0, 1]
    other = Data(Items(ragged([2, 4, 2]), mask=False), Items(split), Items(split))
    assert own.digest() == Data(Items(split, mask=False), Items(split), Items(split)).digest() != other.digest()


def test_a_data_set_whose_examples_differ_is_named():
    class Odd(Items):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return ({**x, "more": x["input_ids"]} if i == 2 else x), y

    split = ragged([2, 4, 1])
    with pytest.raises(SubcompressError, match=r"the train split cannot be read: .* example 2 input_ids, .*more"):
        Data(Odd(split), Items(split), Items(split))


# networks


def test_weights_that_are_there_are_taken_and_a_head_depends_on_the_seed(tiny, tmp_path):
    torch.manual_seed(0)
    bare = pretrained.load_model(tiny[0], "features")
    bare.save_pretrained(tmp_path / "bert", safe_serialization=True)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bert" / name).write_bytes((tiny[0] / name).read_bytes())
    from subcompress_cli.loading import model_of

    a, b, c = (model_of(f"hf:{tmp_path / 'bert'},labels=3", seed) for seed in (1, 1, 2))
    for name, t in bare.state_dict().items():
        assert torch.equal(a.state_dict()[f"bert.{name}"], t)
    assert a.classifier.weight.shape == (3, 16)
    assert torch.equal(a.classifier.weight, b.classifier.weight)
    assert not torch.equal(a.classifier.weight, c.classifier.weight)
    fresh = model_of(f"hf:{tmp_path / 'bert'},weights=none", 1)
    assert not torch.equal(fresh.bert.pooler.dense.weight, a.bert.pooler.dense.weight)
    assert pretrained.labels_of(Layout.of(a.state_dict()), tmp_path / "bert") == 3
    assert pretrained.labels_of(Layout.of(bare.state_dict()), tmp_path / "bert") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:/nowhere/at/all", "is neither a folder nor an ID on the Hub"),
        ("hf:", "needs a folder"),
        ("hf:{tiny},lables=2", "takes task, labels, weights, dtype; got 'lables'"),
        ("hf:{tiny},labels=two", "labels must be a whole number"),
        ("hf:{tiny},task=other", "task must be one of classification, causal-lm, .*features"),
        ("hf:{tiny},weights=some", "weights= must be pretrained or none"),
        ("hf:{here}", "has no config.json"),
        ("hf:{broken}", "transformers does not load"),
    ],
)
def test_one_line_for_a_model_that_is_none(tiny, tmp_path, name, words):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no such type"}')
    name = name.format(tiny=tiny[0], here=tmp_path, broken=tmp_path / "broken")
    result = cli("fit", "--model", name, "--data", f"{tiny[1]},tokenizer={tiny[0]}", "--d", 10, "-o", tmp_path / "run")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    import re

    assert re.search(words, line), line
    assert not (tmp_path / "run").exists()


def test_texts_need_a_tokenizer(tiny, tmp_path):
    result = cli("fit", "--model", "lenet", "--data", tiny[1], "--d", 10, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "need a tokenizer: give --model hf:DIR_OR_ID" in result.stderr


def test_a_tokenizer_without_words_is_refused(tiny, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    with pytest.raises(SubcompressError, match=r"has no vocabulary"):
        pretrained.load_tokenizer(tmp_path)


def test_without_the_extra_one_line_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SubcompressError, match=r"pip install 'transformers>=5'"):
        pretrained.load_model(tiny[0])


# the file


def test_the_dense_file_is_what_from_pretrained_reads(tiny, packed, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    assert cli("unpack", packed, "-o", tmp_path / "model.safetensors").exit_code == 0
    net = pretrained.load_model(tmp_path)
    mine = subcompress.load(packed, pretrained.load_model(tiny[0], labels=2))
    for name, t in mine.state_dict().items():
        assert torch.equal(net.state_dict()[name], t)


@pytest.mark.slow
@pytest.mark.parametrize("unfolding", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_graphs_take_any_batch_and_any_length(tiny, packed, tmp_path, unfolding):
    path = tmp_path / "net.onnx"
    flags = ["--self-unfolding"] if unfolding else []
    result = cli("unpack", packed, "--model", f"hf:{tiny[0]}", "-o", path, *flags)
    assert result.exit_code == 0, result.output
    assert not unfolding or path.stat().st_size < 16_000
    graph = onnx.load(path).graph
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert sizes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
    assert [v.name for v in graph.output] == ["logits"]
    content = path.read_bytes()
    for trace in (b".py", b"site-packages", str(tiny[0]).encode(), b"stack_trace", b"transformers."):
        assert trace not in content
    net = subcompress.load(packed, pretrained.load_model(tiny[0], labels=2))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n, length in ((1, 1), (1, 64), (2, 2), (5, 9), (9, 5)):
        ids, mask = torch.randint(5, 20, (n, length)), torch.ones(n, length, dtype=torch.long)
        mask[-1, (length + 1) // 2 :] = 0
        with torch.no_grad():
            expected = net(input_ids=ids, attention_mask=mask).logits.numpy()
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_verify_measures_it_in_onnx_runtime(tiny, packed):
    result = cli("verify", packed, "--model", f"hf:{tiny[0]}", "--data", tiny[1], "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test_accuracy"] == pytest.approx(format.read(packed)[0].test_accuracy, abs=5e-5)


@pytest.mark.slow
def test_a_graph_of_features_gives_the_last_hidden_state(tiny, data, tmp_path):
    torch.manual_seed(0)
    sub = subcompress.Subspace.of(pretrained.load_model(tiny[0], "features"), 50)
    sub.round(4)
    subcompress.pack(sub, tmp_path / "net.safetensors", replace(data.facts, labels=()))
    result = cli(
        "unpack", tmp_path / "net.safetensors", "--model", f"hf:{tiny[0]},task=features", "-o", tmp_path / "f.onnx"
    )
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(str(tmp_path / "f.onnx"), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state"]
    ones = np.ones((2, 6), np.int64)
    assert session.run(None, {"input_ids": ones, "attention_mask": ones})[0].shape == (2, 6, 16)


@pytest.mark.slow
def test_an_interrupted_fit_ends_with_the_same_file(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)

    class Stops(subcompress.Listener):
        def epoch(self, progress):
            if progress.epoch == 3:
                raise KeyboardInterrupt

    def run(name: str, listener=None) -> bytes:
        torch.manual_seed(0)
        net = pretrained.load_model(tiny[0], labels=2)
        options = {"d": 100, "lr": 0.01, "epochs": 4, "batch_size": 32, "threads": 1}
        subcompress.fit(net, data, tmp_path / name, **options, listener=listener)
        subcompress.pack(tmp_path / name, tmp_path / f"{name}.safetensors")
        return (tmp_path / f"{name}.safetensors").read_bytes()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", Stops())
    assert run("cut") == whole


# Subspace and examples


def test_a_state_dict_holds_the_rounding(tiny):
    torch.manual_seed(0)
    net = pretrained.load_model(tiny[0], labels=2)
    a, b = (subcompress.Subspace.of(net, 50) for _ in range(2))
    with torch.no_grad():
        a.z.normal_()
    a.round(4)
    b.load_state_dict(a.state_dict())
    assert b.settings() == a.settings()
    assert b.record().digest == a.record().digest


@pytest.mark.parametrize("name", ["plain_loop", pytest.param("trainer", marks=pytest.mark.slow)])
def test_examples(name, tiny, tmp_path, monkeypatch, capsys):
    """On a fifth of their texts, and a layer less."""
    if name == "trainer":
        pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    few = tmp_path / "few.csv"
    few.write_text("".join(tiny[1].read_text().splitlines(keepends=True)[:121]))
    given = ["--model", str(tiny[0]), "--csv", str(few), "--epochs", "2", "--d", "200", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *given])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "test accuracy" in capsys.readouterr().out
    assert (content := (tmp_path / "net.safetensors").read_bytes()) and len(content) < 700
    net = pretrained.load_model(tmp_path / "dense")
    mine = subcompress.load(tmp_path / "net.safetensors", pretrained.load_model(tmp_path / "dense", weights=False))
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in mine.state_dict().items())
    if name == "trainer":  # its last checkpoint holds all that was trained
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert (tmp_path / "net.safetensors").read_bytes() == content
