"""A file as a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from forged_bases import refusal
from lazily import needed
from on_transformers import network_of, record_on, saved, settings_in, tiny_bert, tiny_llama
from records import record_of

import subcompress
from subcompress.format.facts import Facts
from subcompress.rebuild.expand import expand

needed("transformers")

LABELS = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """The folder of a base, and in it what is no companion of its weights."""
    folder = tiny_bert(tmp_path_factory.mktemp("bert"))
    (folder / "LICENSE").write_text("free")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def classifier(bert):
    """A classifier of three labels on that base: the record, and its file."""
    module = network_of(bert, "AutoModelForSequenceClassification", num_labels=3)
    record = record_on(module, bert, ["*LayerNorm*", "*.bias"], Facts(labels=LABELS))
    return record, saved(record, bert.parent / "classifier.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


def same(folder: Path, auto: str, record, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a folder holds the weights of the record, to the bit."""
    state, module = expand(record), network_of(folder, auto, dtype)
    assert list(module.state_dict()) == [n for n in module.state_dict() if n in state]
    return all(torch.equal(t, state[n]) for n, t in module.state_dict().items())


def test_a_classifier_comes_with_labels_and_tokenizer(classifier, bert, tmp_path):
    record, file = classifier
    out = subcompress.unpack(file, tmp_path / "out", base=bert, format="transformers")
    assert same(out, "AutoModelForSequenceClassification", record)
    settings = settings_in(out)
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["dtype"] == "float32"
    assert settings["id2label"] == dict(zip("012", LABELS, strict=True))
    assert settings["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    names = {path.name for path in out.iterdir()}
    kept = {path.name for path in bert.iterdir()} - {"modeling_own.py"}
    assert names == kept
    from transformers import AutoTokenizer

    one, other = (AutoTokenizer.from_pretrained(folder)("a b")["input_ids"] for folder in (out, bert))
    assert one == other


def test_a_language_model_in_shards_keeps_its_ties(llama, tmp_path):
    module = network_of(llama, "AutoModelForCausalLM", torch.bfloat16)
    record = record_on(module, llama, ["*norm*"])
    file = saved(record, tmp_path / "net.safetensors")
    out = subcompress.unpack(file, tmp_path / "out", base=llama, format="transformers", shard_size=4_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors" and len(shards) > 2
    assert all((out / shard).stat().st_size < 5_000 for shard in shards)
    assert "lm_head.weight" not in index["weight_map"]
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in module.parameters())
    assert same(out, "AutoModelForCausalLM", record, torch.bfloat16)
    assert settings_in(out)["dtype"] == "bfloat16"
    assert (out / "generation_config.json").read_bytes() == (llama / "generation_config.json").read_bytes()


def test_weights_can_be_rounded(classifier, bert, tmp_path):
    record, file = classifier
    out = subcompress.unpack(file, tmp_path / "out", base=bert, format="transformers", dtype="bf16")
    assert settings_in(out)["dtype"] == "bfloat16"
    module, state = network_of(out, "AutoModelForSequenceClassification", torch.bfloat16), expand(record)
    assert all(torch.equal(t, state[n].bfloat16()) for n, t in module.state_dict().items())


def test_without_a_base_the_configuration_is_named(bert, tmp_path):
    module = network_of(bert, "AutoModel")
    record = record_of(module, Facts())
    file = saved(record, tmp_path / "net.safetensors")
    assert "give them with --model hf:DIR" in refusal(subcompress.unpack, file, tmp_path / "o", format="transformers")
    out = subcompress.unpack(file, tmp_path / "out", format="transformers", files=bert)
    assert settings_in(out)["architectures"] == ["BertModel"]
    assert same(out, "AutoModel", record)


def test_labels_without_names_are_counted(bert, tmp_path):
    record = record_on(network_of(bert, "AutoModelForSequenceClassification", num_labels=5), bert, ["*LayerNorm*"])
    out = subcompress.unpack(
        saved(record, tmp_path / "net.safetensors"), tmp_path / "out", base=bert, format="transformers"
    )
    assert settings_in(out)["id2label"]["4"] == "LABEL_4"
    assert same(out, "AutoModelForSequenceClassification", record)


def test_what_stands_in_the_way_is_one_line(classifier, bert, llama, tmp_path, monkeypatch):
    _, file = classifier

    def line(place=tmp_path / "out", base=bert, **options) -> str:
        return refusal(subcompress.unpack, file, place, **{"base": base, "format": "transformers", **options})

    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    assert "already holds files: give a new or empty folder" in line(full)
    assert "is a file: give another place" in line(full / "notes.txt")
    other = tiny_bert(tmp_path / "other", initializer_range=0.5)
    assert "has digest" not in line(base=other) and "with the digest" in line(base=other)
    assert "no transformers model of the type llama has the tensors" in line(files=llama)
    assert "which a transformers model needs: give a folder that has one" in line(files=tmp_path)
    assert "must be at least 1 byte" in line(shard_size=0)
    assert "--rank belongs to the format peft" in line(rank=3)
    assert "a format must be one of safetensors" in line(format="gguff")
    assert "must be written as fp32" in line(dtype="int8")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert "needs transformers, and it is not here" in line()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == []


def test_a_base_in_shards_is_whole(llama, tmp_path):
    module = network_of(llama, "AutoModelForCausalLM", torch.bfloat16)
    file = saved(record_on(module, llama, ["*norm*"]), tmp_path / "net.safetensors")
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    shard = max(base.glob("model-*.safetensors"))
    index = base / "model.safetensors.index.json"
    table = json.loads(index.read_text())

    def line() -> str:
        return refusal(subcompress.unpack, file, tmp_path / "out", base=base, format="transformers")

    shard.rename(tmp_path / "away")
    assert f"names {shard.name}, which is not in" in line()
    (tmp_path / "away").rename(shard)
    wrong = dict.fromkeys(table["weight_map"], shard.name)
    index.write_text(json.dumps({"weight_map": wrong}))
    assert "which lacks it: fetch both again" in line()
    index.write_text("{}")
    assert "has no weight_map" in line()
    assert not (tmp_path / "out").exists()
