"""predict: labels, probabilities, values and texts from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
import torch
from commands import cli
from PIL import Image
from torch import nn

import subcompress
from subcompress import Facts, SubcompressError
from subcompress_cli.finding import network_for, networks_of, place_of
from subcompress_models import MODELS


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny Llama, and a file on it with classes."""
    pytest.importorskip("transformers")
    from subcompress_cli.loading import model_of

    folder = tmp_path_factory.mktemp("predicted")
    base = tiny_llama.make(folder / "base")
    facts = Facts(labels=("no", "yes"))
    sub = subcompress.Subspace.of(model_of(f"hf:{base}", 0, facts), 20, base=base)
    sub.round()
    subcompress.pack(sub, folder / "net.safetensors", facts)
    return base, folder / "net.safetensors"


def said(*args: object) -> str:
    result = cli("predict", *args)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_images_and_arrays(small_file, digits, tmp_path):
    x, _ = digits.test[torch.arange(3)]
    net = subcompress.load(small_file, MODELS["lenet"]())
    with torch.no_grad():
        p = net(x).softmax(1)
    wanted = [f"{digits.facts.labels[int(row.argmax())]} {float(row.max()):.4f}" for row in p]
    pixels = (x * torch.tensor(digits.facts.std) + torch.tensor(digits.facts.mean)).mul(255).round().to(torch.uint8)
    np.save(tmp_path / "floats.npy", x.numpy())
    np.save(tmp_path / "bytes.npy", pixels.numpy())
    np.save(tmp_path / "one.npy", x[0].numpy())
    for i in range(3):
        Image.fromarray(pixels[i, 0].numpy()).convert("RGB").save(tmp_path / f"{i}.png")
    rows = said(small_file, "--input", tmp_path / "floats.npy").splitlines()
    assert rows == [f"{i}: {w}" for i, w in enumerate(wanted)]
    assert said(small_file, "--input", tmp_path / "one.npy") == wanted[0]
    assert said(small_file, "--input", tmp_path / "0.png").split()[0] == wanted[0].split()[0]
    folder = json.loads(said(small_file, "--input", tmp_path, "--json"))
    assert [(row["input"], row["label"]) for row in folder] == [
        (f"{i}.png", w.split()[0]) for i, w in enumerate(wanted)
    ]
    found = subcompress.predict(small_file, pixels, MODELS["lenet"]())
    assert [r.label for r in found] == [w.split()[0] for w in wanted]


def test_texts_of_a_file_on_a_base(llama, tmp_path):
    base, file = llama
    one = said(file, "--base", base, "--input", "say red")
    assert re.fullmatch(r"(no|yes) 0\.\d{4}", one)
    assert said(file, "--model", f"hf:{base}", "--base", base, "--input", "say red") == one
    (tmp_path / "a.csv").write_text("id,text\n1,say red\n2,not it again\n")
    (tmp_path / "a.jsonl").write_text('{"text": "say red"}\n{"text": "not it again"}\n')
    for name in ("a.csv", "a.jsonl"):
        rows = said(file, "--base", base, "--input", tmp_path / name).splitlines()
        assert len(rows) == 2 and rows[0] == f"say red: {one}" and rows[1].startswith("not it again: ")


def test_a_label_for_each_token(llama, tmp_path):
    from transformers import AutoTokenizer

    from subcompress_cli.loading import model_of

    base, _ = llama
    model = f"hf:{base},task=token-classification,labels=3"
    sub = subcompress.Subspace.of(model_of(model, 0), 20, base=base, new=("score*",))
    sub.round()
    subcompress.pack(sub, tmp_path / "net.safetensors")
    options = (tmp_path / "net.safetensors", "--base", base, "--model", model, "--input", "say red")
    (found,) = json.loads(said(*options, "--json"))
    ids = AutoTokenizer.from_pretrained(base)("say red", return_tensors="pt").input_ids
    with torch.no_grad():
        net = subcompress.load(tmp_path / "net.safetensors", model_of(model, 0), base=base)
        p = net(input_ids=ids).logits[0].double().softmax(1)
    assert [int(t["label"].removeprefix("LABEL_")) for t in found["tokens"]] == p.argmax(1).tolist()[
        -len(found["tokens"]) :
    ]
    assert "".join(t["token"] for t in found["tokens"]).replace(" ", "") == "sayred"
    assert said(*options) == " ".join(f"{t['token'].strip()}/{t['label']}" for t in found["tokens"])


def test_values_and_names(tmp_path):
    torch.manual_seed(0)
    for outputs in (1, 3):
        sub = subcompress.Subspace.of(nn.Linear(4, outputs), 3)
        sub.round()
        subcompress.pack(sub, tmp_path / "net.safetensors", Facts(input_shape=(4,)))
        x = torch.randn(2, 4)
        found = subcompress.predict(tmp_path / "net.safetensors", x, net := nn.Linear(4, outputs))
        with torch.no_grad():
            y = net(x)
        if outputs == 1:
            assert [r.values for r in found] == [pytest.approx(row.tolist()) for row in y]
        else:
            assert [(r.label, r.input) for r in found] == [(str(int(row.argmax())), str(i)) for i, row in enumerate(y)]
            named = subcompress.predict(tmp_path / "net.safetensors", x, net, labels=["a", "b", "c"])
            assert [r.label for r in named] == ["abc"[int(row.argmax())] for row in y]
            with pytest.raises(SubcompressError, match="labels must name all 3 outputs; got 2"):
                subcompress.predict(tmp_path / "net.safetensors", x, net, labels=["a", "b"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "either --input X or --generate PROMPT"),
        (["--input", "hello"], "a text needs a tokenizer, and the file names none: give --model"),
        (["--generate", "hello"], "needs a tokenizer, and the file names none"),
        (["--input", "none.png"], "none.png cannot be read as an image"),
        (["--input", "none.npy"], "none.npy cannot be read as an array"),
        (
            ["--input", "odd.npy"],
            r"an input must have the shape \(1, 28, 28\), possibly with a batch axis before it; .* has \(2, 5\)",
        ),
        (["--input", "empty"], "empty holds no images"),
    ],
)
def test_one_line_for_what_cannot_be_looked_at(small_file, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    np.save("odd.npy", np.zeros((2, 5), np.float32))
    Path("empty").mkdir()
    result = cli("predict", small_file, *options)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert re.search(words, line), line


def test_one_line_for_a_network_that_is_not_at_hand(llama, tmp_path):
    base, file = llama
    weights = base / "model.safetensors"
    (tmp_path / "m.safetensors").write_bytes(weights.read_bytes())
    result = cli("predict", file, "--base", tmp_path / "m.safetensors", "--input", "say")
    assert result.exit_code == 1 and "give it with --model" in result.stderr
    assert "there is no base with a config.json" in result.stderr
    (tmp_path / "a.csv").write_text("words\nsay\n")
    result = cli("predict", file, "--base", base, "--input", tmp_path / "a.csv")
    assert result.exit_code == 1 and "line 2: the texts must be in a column text; the file has words" in result.stderr
    result = cli("predict", file, "--base", base, "--generate", "say")
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) <= 3, result.stderr
    assert "generate" in result.stderr


def test_every_command_finds_the_network_of_the_base(llama):
    base, file = llama
    found = network_for(file, None, str(base))
    assert found.name == f"hf:{base},task=classification"
    assert found.layout == subcompress.format.read(file, base)[0].layout
    parsed = subcompress.format.parse(file.read_bytes())
    assert next(networks_of(found.layout, (), "net", place_of(parsed.base, str(base)))).name == found.name
    assert place_of(parsed.base, str(base / "model.safetensors")) == (str(base), None)
    assert place_of(None, None) is None
