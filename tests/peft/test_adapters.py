"""Adapters of PEFT: what is trained, saved and loaded, and several of them in one model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from adapters_of_llama import TOKENS, adapted, logits, move
from documents import python
from lazily import needed
from places import ROOT
from tiny_llama import network
from torch import nn

import subcompress
from subcompress.errors import SubcompressError

peft = needed("peft")
ours = needed("subcompress.peft")

NAME = "adapter_model.safetensors"


def test_only_z_is_trained(capsys):
    model = peft.get_peft_model(network(), ours.SubspaceConfig(d=20))
    model.print_trainable_parameters()
    assert "trainable params: 20 ||" in capsys.readouterr().out
    (z,) = [p for p in model.parameters() if p.requires_grad]
    assert z.shape == (20,) and z.dtype == torch.float32
    assert torch.equal(logits(model), logits(network()))
    assert model.bfloat16().base_model.subcompress_layer.adapters["default"].z.dtype == torch.float32


def test_weights_and_gradients_are_those_of_a_subspace(tmp_path):
    model, base = adapted().train(), network()
    space = subcompress.Subspace.of(base, 20, base=base)
    z = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        space.z.copy_(z)
    for module in (model, space):
        module(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert torch.equal(z.grad, space.z.grad) and float(z.grad.abs().sum()) > 0
    expected = space.weights()
    found = model.base_model.subcompress_layer.adapters["default"].weights()
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("act_on", ["norms,lora:2", "norms,sketch:3"])
def test_coordinates_act_on_factors_too(tmp_path, act_on):
    model = adapted(act_on=act_on)
    assert not torch.equal(logits(model), logits(network()))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(network(), tmp_path)), logits(model))


def test_a_loop_trains_and_what_is_evaluated_is_what_is_saved(tmp_path):
    model = peft.get_peft_model(network(), ours.SubspaceConfig(d=40, act_on="all", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=model.learning_rate)
    losses = []
    for _ in range(30):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(network(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(model), model.train()(input_ids=TOKENS).logits), "z itself is not rounded"
    model.round_coordinates()
    assert torch.equal(logits(model), model.train()(input_ids=TOKENS).logits)


def test_checkpointed_layers_have_the_same_gradients():
    model = adapted(act_on="all").train()
    z, grads = next(p for p in model.parameters() if p.requires_grad), []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        z.grad = None
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        grads.append(z.grad)
    assert torch.equal(grads[0], grads[1]) and torch.allclose(grads[0], grads[2], atol=1e-6)


def test_the_saved_file_is_a_packed_file(saved, tmp_path):
    folder, expected = saved
    assert (folder / NAME).stat().st_size < 400
    base = network()
    base.save_pretrained(tmp_path / "base")
    subcompress.unpack(folder / NAME, tmp_path / "dense.safetensors", base=tmp_path / "base")
    net = subcompress.load(folder / NAME, network(seed=1), base=tmp_path / "base")
    assert torch.equal(logits(net), expected)
    merged = peft.PeftModel.from_pretrained(network(), folder).merge_and_unload()
    assert not hasattr(merged, "peft_config") and torch.equal(logits(merged), expected)
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"is_trainable": True}, {"low_cpu_mem_usage": True}])
def test_a_loaded_model_is_the_saved_one(saved, tmp_path, options):
    folder, expected = saved
    model = peft.PeftModel.from_pretrained(network(), folder, **options)
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path)
    assert (tmp_path / NAME).read_bytes() == (folder / NAME).read_bytes()


def test_a_model_loaded_from_a_folder_stands_on_its_files(tmp_path):
    base = network()
    base.save_pretrained(tmp_path / "base")
    again = type(base).from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(again, ours.SubspaceConfig(d=20))
    model.save_pretrained(tmp_path / "adapter")
    assert subcompress.info(tmp_path / "adapter" / NAME)["base"]["id"] == "base"
    peft.PeftModel.from_pretrained(network(), tmp_path / "adapter")  # the same values, in memory


def test_a_head_that_the_base_lacks_starts_from_the_seed(tmp_path):
    from transformers import AutoModelForSequenceClassification

    network().save_pretrained(tmp_path / "base")

    def classifier(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3, pad_token_id=0)

    model = peft.get_peft_model(classifier(1), ours.SubspaceConfig(d=20, task_type="SEQ_CLS"))
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / NAME).stat().st_size < 500
    again = peft.PeftModel.from_pretrained(classifier(2), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


def test_several_adapters(saved, tmp_path):
    folder, expected = saved
    base = network()
    plain = logits(base)
    model = peft.PeftModel.from_pretrained(base, folder)
    model.load_adapter(folder, "twin")
    model.add_adapter("other", ours.SubspaceConfig(d=30, seed=9, act_on="norms"))
    move(model, 4, "other")
    other = model.set_adapter("other")
    other = logits(model)
    assert not torch.equal(other, expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), other)
    model.set_adapter("twin")
    assert torch.equal(logits(model), expected)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.subcompress_layer.adapters.twin.z"
    ]
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("twin")
    assert set(model.peft_config) == {"default", "other"} and torch.equal(logits(model), expected)
    model.merge_adapter()
    assert torch.equal(logits(model.get_base_model()), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model.unload()), plain)


def test_a_failed_pass_leaves_the_model_as_it_is(saved):
    model = peft.PeftModel.from_pretrained(network(), saved[0])
    before = dict(model.named_parameters())
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[99]]))
    assert all(p is before[n] for n, p in model.named_parameters())
    assert torch.equal(logits(model), saved[1])


def test_a_generation_uses_the_adapter(saved):
    model = peft.PeftModel.from_pretrained(network(), saved[0])
    merged = peft.PeftModel.from_pretrained(network(), saved[0]).merge_and_unload()
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(TOKENS, **options), merged.generate(TOKENS, **options))


def test_another_base_is_refused_with_both_digests(saved):
    with pytest.raises(
        SubcompressError, match=r"was made on LlamaForCausalLM, .*digest [0-9a-f]{32}, .*digest [0-9a-f]{32}"
    ):
        peft.PeftModel.from_pretrained(network(seed=1), saved[0])


@pytest.mark.parametrize("damage", ["cut", "bits", "other"])
def test_a_damaged_file_is_refused_in_a_line(saved, tmp_path, damage):
    data = (saved[0] / NAME).read_bytes()
    middle = len(data) - 60
    (tmp_path / "adapter_config.json").write_bytes((saved[0] / "adapter_config.json").read_bytes())
    damaged = {"cut": data[:-9], "bits": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "other": b""}
    (tmp_path / NAME).write_bytes(damaged[damage])
    with pytest.raises(SubcompressError) as e:
        peft.PeftModel.from_pretrained(network(), tmp_path)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


@pytest.mark.parametrize(
    "options",
    [{"d": 0}, {"bits": 1}, {"seed": -1}, {"operator": "none"}, {"modules_to_save": ["score"]}, {"d": "many"}],
)
def test_settings_that_no_subspace_takes_are_refused(options):
    with pytest.raises(SubcompressError):
        ours.SubspaceConfig(**options)


def test_settings_of_another_model_are_refused(saved, tmp_path):
    with pytest.raises(SubcompressError, match="nothing_like_it"):
        peft.get_peft_model(network(), ours.SubspaceConfig(act_on="nothing_like_it"))
    (tmp_path / NAME).write_bytes((saved[0] / NAME).read_bytes())
    config = json.loads((saved[0] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"d": 21}))
    with pytest.raises(SubcompressError, match="has 21 coordinates; its file has 20"):
        peft.PeftModel.from_pretrained(network(), tmp_path)
    model = adapted()
    with pytest.raises(SubcompressError, match="one adapter"):
        model(input_ids=TOKENS, adapter_names=["default", "default"])


def test_running_statistics_stay_those_of_the_base():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model = peft.get_peft_model(net, ours.SubspaceConfig(d=5)).train()
    model(torch.randn(6, 4)).sum().backward()
    assert not net[1].training and float(net[1].running_mean.abs().sum()) == 0


def test_a_second_peft_model_of_the_same_model_is_refused(saved):
    model = peft.PeftModel.from_pretrained(network(), saved[0])
    with pytest.warns(UserWarning), pytest.raises(SubcompressError, match="already has adapters"):
        peft.get_peft_model(model.get_base_model(), ours.SubspaceConfig(d=5))
    assert torch.equal(logits(model), saved[1])


def test_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(python("docs/guides/peft.md"), {})
    assert capsys.readouterr().out in (ROOT / "docs/guides/peft.md").read_text()


def test_no_other_module_imports_peft_when_it_is_imported():
    package = Path(subcompress.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name != "peft":
            found = [line for line in path.read_text().splitlines() if line.startswith(("import peft", "from peft"))]
            assert not found, path
            assert "subcompress.peft" not in path.read_text(), path


def test_without_peft_it_is_said_in_a_line(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("subcompress.peft")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SubcompressError, match="pip install peft"):
        __import__("subcompress.peft")
