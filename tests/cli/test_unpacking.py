"""The formats of `unpack` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import cli
from forged_bases import refusal
from on_transformers import network_of, record_on, saved, settings_in, tiny_bert
from records import lenet_record, record_of

from subcompress.format.facts import Facts
from subcompress_cli.unpack import Bytes


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    pytest.importorskip("transformers")
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def mistake(*args: object) -> str:
    done = cli(*args)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_folder_of_a_fine_tune(bert, tmp_path):
    module = network_of(bert, "AutoModelForSequenceClassification", num_labels=2)
    record = record_on(module, bert, ["*LayerNorm*"], Facts(labels=("no", "yes")))
    file, out = saved(record, tmp_path / "net.safetensors"), tmp_path / "out"
    options = ("--base", bert, "--format", "transformers", "--shard-size", "4KB", "--json")
    told = json.loads(cli("unpack", file, "-o", out, *options).stdout)
    assert told["architecture"] == "BertForSequenceClassification"
    assert told["output_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert settings_in(out)["id2label"] == {"0": "no", "1": "yes"}
    assert "holds files" in mistake("unpack", file, "-o", out, *options)


def test_a_folder_without_a_base(bert, tmp_path):
    file = saved(record_of(network_of(bert, "AutoModel"), Facts()), tmp_path / "net.safetensors")
    command = ("unpack", file, "-o", tmp_path / "out", "--format", "transformers")
    assert "give them with --model hf:DIR" in mistake(*command)
    assert "take --model hf:DIR_OR_ID; got 'lenet'" in mistake(*command, "--model", "lenet")
    done = cli(*command, "--model", f"hf:{bert},task=features")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'out'}: " in done.stdout


def test_formats_by_name_are_those_of_the_suffix(tmp_path):
    file = saved(lenet_record(), tmp_path / "net.safetensors")
    for name, words in {"a": (), "b": ("--format", "safetensors")}.items():
        assert cli("unpack", file, "-o", tmp_path / f"{name}.safetensors", *words).exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    other = mistake("unpack", file, "-o", tmp_path / "c.bin", "--format", "safetensors")
    assert "the format safetensors is a .safetensors file; got c.bin: rename the output" in other
    both = mistake("unpack", file, "-o", tmp_path / "c", "--format", "transformers", "--self-unfolding")
    assert "--self-unfolding writes ONNX, and --format transformers does not" in both
    assert "--shard-size belongs to the format transformers" in mistake(
        "unpack", file, "-o", tmp_path / "c.safetensors", "--shard-size", "5GB"
    )
    assert "or give --format transformers or peft for a folder" in mistake("unpack", file, "-o", tmp_path / "c")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("700", 700), ("2kb", 2_000)])
def test_sizes(text, size):
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "5 TB", "GB", "-1", "1e9", "5G"])
def test_what_is_no_size(text):
    assert "must be a number of bytes, such as 5GB" in refusal(Bytes().convert, text, None, None)
