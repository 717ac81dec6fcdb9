"""A file as a LoRA adapter that PEFT loads over the base."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import cli
from forged_bases import refusal
from lazily import needed
from on_transformers import network_of, record_on, saved, tiny_bert, tiny_llama
from records import record_of

import subcompress
from subcompress.api.formats.lora import low_rank
from subcompress.format.facts import Facts
from subcompress.rebuild.expand import expand

peft = needed("peft")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


def merged(adapter: Path, base: Path, auto: str, dtype: torch.dtype = torch.float32, **settings) -> dict:
    """The state dict of the base with the adapter merged into it."""
    module = network_of(base, auto, dtype, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between versions of both libraries
        return peft.PeftModel.from_pretrained(module, adapter).merge_and_unload().state_dict()


def written(record, base: Path, tmp_path: Path, **options) -> tuple[Path, dict]:
    file = saved(record, tmp_path / "net.safetensors")
    out = subcompress.unpack(file, tmp_path / "out", base=base, format="peft", **options)
    return out, json.loads((out / "subcompress.json").read_text())


def test_norms_biases_and_a_new_head_are_exact(bert, tmp_path):
    module = network_of(bert, "AutoModelForSequenceClassification", num_labels=3)
    record = record_on(module, bert, ["*LayerNorm*", "*.query.bias", "*.key.weight"])
    out, told = written(record, bert, tmp_path)
    assert not told["approximation"] and list(told["errors"]) == ["bert.encoder.layer.0.attention.self.key.weight"]
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["bias"], settings["r"]) == ("SEQ_CLS", "lora_only", 16)
    assert settings["base_model_name_or_path"] == str(bert)
    assert "classifier" in settings["modules_to_save"] and "classifier" in told["kept_whole"]
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1, "all files can be read by the same people"
    state = expand(record)
    found = merged(out, bert, "AutoModelForSequenceClassification", num_labels=3)
    assert all(torch.allclose(t, state[n], atol=1e-6) for n, t in found.items())
    assert torch.equal(found["classifier.weight"], state["classifier.weight"])


def test_a_head_of_the_base_is_kept_whole_as_peft_does(bert, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = tmp_path / "base"
    RobertaForSequenceClassification(RobertaConfig(**sizes, intermediate_size=32)).save_pretrained(base)
    module = network_of(base, "AutoModelForSequenceClassification")
    record = record_on(module, base, ["classifier.*", "*.key.weight"])
    out, told = written(record, base, tmp_path)
    assert told["kept_whole"] == ["classifier"]
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["roberta.encoder.layer.0.attention.self.key"]
    state, found = expand(record), merged(out, base, "AutoModelForSequenceClassification")
    assert all(torch.allclose(t, state[n], atol=1e-6) for n, t in found.items())


def test_a_low_rank_is_an_approximation_with_its_error(bert, tmp_path):
    record = record_on(network_of(bert, "AutoModel"), bert, ["*.key.weight", "*intermediate.dense.weight"])
    out, told = written(record, bert, tmp_path, rank=2)
    assert told["approximation"] and told["rank"] == 2
    state, base, found = expand(record), network_of(bert, "AutoModel").state_dict(), merged(out, bert, "AutoModel")
    lost = whole = 0.0
    for name, error in told["errors"].items():
        a, b = (found[name] - state[name]).square().sum(), (state[name] - base[name]).square().sum()
        assert float((a / b).sqrt()) == pytest.approx(error, rel=1e-3)
        lost, whole = lost + float(a), whole + float(b)
    assert told["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_norms_alone_need_no_linear_layer(llama, tmp_path):
    record = record_on(network_of(llama, "AutoModelForCausalLM", torch.bfloat16), llama, ["*norm*"])
    out, told = written(record, llama, tmp_path)
    assert told["relative_error"] == 0 and len(told["kept_whole"]) == 5
    state, found = expand(record), merged(out, llama, "AutoModelForCausalLM", torch.bfloat16)
    assert all(torch.equal(t, state[n]) for n, t in found.items())


def test_the_command_says_the_error(bert, tmp_path):
    record = record_on(network_of(bert, "AutoModel"), bert, ["*.key.weight"])
    file = saved(record, tmp_path / "net.safetensors")
    command = ("unpack", file, "--base", bert, "--format", "peft", "--rank", 1, "-o")
    done = cli(*command, tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "the adapter of rank 1 is an approximation: it lacks " in done.stdout
    told = json.loads(cli(*command, tmp_path / "b", "--json").stdout)
    assert told["relative_error"] == pytest.approx(max(told["errors"].values()))
    assert told["output_bytes"] == sum(p.stat().st_size for p in (tmp_path / "b").iterdir())


def test_what_no_adapter_holds_is_refused(bert, llama, tmp_path, monkeypatch):
    def line(record, base, **options) -> str:
        file = saved(record, tmp_path / "net.safetensors")
        return refusal(subcompress.unpack, file, tmp_path / "out", base=base, format="peft", **options)

    module = network_of(bert, "AutoModel")
    alone = record_of(module, Facts())
    assert "the file has no base: give --format transformers" in line(alone, None)
    record = record_on(module, bert, ["*.key.weight"])
    assert "--rank must be at least 1; got 0" in line(record, bert, rank=0)
    assert "--dtype belongs to the format safetensors or transformers" in line(record, bert, dtype="bf16")
    forged = replace(record, digest=bytes(16))
    assert "the rebuilt weights have digest" in line(forged, bert)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "it is not here" in line(record, bert)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(("rows", "columns"), [(700, 600), (30, 40)])
def test_the_decomposition_is_the_best_of_its_rank(rows, columns):
    drawn = torch.Generator().manual_seed(0)
    thin = torch.randn(rows, 5, generator=drawn) @ torch.randn(5, columns, generator=drawn)
    a, b = low_rank(thin.double(), 8)
    assert a.shape == (8, columns) and b.shape == (rows, 8)
    assert torch.dist(b @ a, thin) < 1e-5 * thin.norm()
    noisy = thin + 0.5 * torch.randn(rows, columns, generator=drawn)
    a, b = low_rank(noisy.double(), 5)
    best = float(np.sqrt(np.square(np.linalg.svd(noisy.numpy(), compute_uv=False)[5:]).sum()))
    assert float(torch.dist(b @ a, noisy)) < 1.001 * best


def test_a_tied_embedding(llama, tmp_path):
    record = record_on(network_of(llama, "AutoModelForCausalLM", torch.bfloat16), llama, ["*embed_tokens*"])
    out, told = written(record, llama, tmp_path)
    assert told["kept_whole"] == ["model.embed_tokens"]
    state, found = expand(record), merged(out, llama, "AutoModelForCausalLM", torch.bfloat16)
    assert all(torch.equal(t, state[n]) for n, t in found.items())


def through_factors(module, base: Path, act_on: str, tmp_path: Path) -> Path:
    """A file whose coordinates act on factors."""
    sub = subcompress.Subspace.of(module, 30, base=str(base), act_on=act_on)
    torch.nn.init.normal_(sub.z, generator=torch.Generator().manual_seed(0))
    sub.round(4)
    subcompress.pack(sub, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def answers(module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=ids)[0]


def test_factors_are_an_exact_adapter(bert, tmp_path):
    module = network_of(bert, "AutoModel")
    file = through_factors(module, bert, "norms,lora:3,*.query,lora:2,*output.dense", tmp_path)
    out = subcompress.unpack(file, tmp_path / "out", base=bert, format="peft", rank=1)
    told = json.loads((out / "subcompress.json").read_text())
    assert not told["approximation"] and set(told["errors"].values()) == {0.0} and len(told["errors"]) == 3
    settings = json.loads((out / "adapter_config.json").read_text())
    (other,) = settings["rank_pattern"].values()
    assert (settings["r"], settings["lora_alpha"], other) == (2, 2, 3) == (told["rank"], 2, 3)
    ids = torch.arange(5, 15)[None]
    expected = answers(subcompress.load(file, network_of(bert, "AutoModel"), base=bert), ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.PeftModel.from_pretrained(network_of(bert, "AutoModel"), out)
    assert torch.allclose(answers(adapted, ids), expected, atol=2e-6)
    assert not torch.allclose(answers(network_of(bert, "AutoModel"), ids), expected, atol=1e-3)


@pytest.mark.parametrize("act_on", ["lora:2", "sketch:3"])
def test_factors_of_transposed_layers_are_an_exact_adapter(tmp_path, act_on):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "base")
    module = network_of(tmp_path / "base", "AutoModelForCausalLM")
    file = through_factors(module, tmp_path / "base", act_on, tmp_path)
    out = subcompress.unpack(file, tmp_path / "out", base=tmp_path / "base", format="peft")
    assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"]
    ids = torch.arange(5, 15)[None]
    expected = answers(subcompress.load(file, module, base=tmp_path / "base"), ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.PeftModel.from_pretrained(network_of(tmp_path / "base", "AutoModelForCausalLM"), out)
    assert torch.allclose(answers(adapted, ids), expected, atol=2e-6)
