"""Cards: what they say of a file, what others wrote on them, and code on them that runs."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from on_hub import FIRST, SECOND, push

import subcompress
from subcompress.hub import card

# The card


def test_the_card_of_a_run(hub, client, name, small_file, small_run, tmp_path, monkeypatch):
    options = ["--run", small_run, "--dataset", "me/digits", "--model", "lenet"]
    assert client("push", small_file, name, *options).exit_code == 0
    held = hub.held(name)
    text, fit = held["README.md"].decode(), subcompress.training.run.fit_of(small_run)
    from huggingface_hub import ModelCard, parse_eval_result_entries

    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("subcompress", "image-classification")
    assert (data.datasets, data.metrics) == (["me/digits"], [fit.metric])
    found = {r.dataset_split: r.metric_value for r in data.eval_results}
    assert found == {"test": pytest.approx(fit.test, abs=1e-6), "validation": pytest.approx(fit.validation, abs=1e-6)}
    (entry,) = parse_eval_result_entries(yaml.safe_load(held[".eval_results/subcompress.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("me/digits", "default", fit.test)
    ledger = subcompress.info(small_file)["ledger"]
    assert all(f"| {part} | {size:,} |" in text for part, size in ledger.items())
    assert str(small_run) not in text

    (tmp_path / "model.onnx").write_bytes(held["model.onnx"])
    monkeypatch.chdir(tmp_path)
    code, torch_code = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    exec(code, names)
    assert names["outputs"][0].shape == (1, 10)
    assert client.python(torch_code + "result = sum(p.numel() for p in net.parameters())") == 44_426
    assert "was not packed from the run" in client("push", FIRST, name, "--run", small_run, "--onnx", "none").error


def test_what_its_owner_wrote_stays(hub, client, name):
    push(client, FIRST, name)
    text = hub.held(name)["README.md"].decode()
    edited = text.replace("tags:\n", "license: mit\nlanguage: en\ntags:\n- mine\n") + "\n## My section\n\nwords\n"
    edited = edited.replace("# ", "# (mine to lose) ", 1)
    hub.put(
        name, "by hand", README__md=edited.replace("<!-- subcompress", "An opening.\n\n<!-- subcompress", 1).encode()
    )
    push(client, SECOND, name)
    now = hub.held(name)["README.md"].decode()
    assert "An opening." in now and now.endswith("## My section\n\nwords\n")
    assert "mine to lose" not in now
    matter = yaml.safe_load(now.split("---\n")[1])
    assert (matter["license"], matter["language"], matter["tags"]) == ("mit", "en", ["subcompress", "mine"])
    assert push(client, SECOND, name)["changed"] is False


@pytest.mark.parametrize(
    "broken", ["---\na: [\n---\nzebra", "---\n- a\n---\nzebra", "---\na: 1\nzebra", "---\n\ta: 1\n---\n"]
)
def test_a_broken_card(hub, client, name, broken):
    hub.make(name)
    hub.put(name, "by hand", README__md=broken.encode())
    line = client("push", FIRST, name, "--onnx", "none").error
    assert "README.md" in line and "--replace-card" in line
    assert hub.messages(name) == ["by hand", "initial commit"]
    push(client, FIRST, name, "--replace-card")
    assert "\nzebra" not in hub.held(name)["README.md"].decode()


def test_words_that_would_break_out_of_a_card():
    evil = "a|b\n<!-- /subcompress --> `x` [y](z)"
    assert card._cell(evil) == r"a\|b \<!-- /subcompress --\> \`x\` \[y\](z)"


def test_a_base_on_the_hub_is_named(tmp_path):
    info = subcompress.info(FIRST) | {"base": {"id": "hub:them/base", "revision": "c0ffee", "digest": "00"}}
    page = card.Page("me/net", info, {"model.safetensors": ("00", 474)}, card.About(), None)
    text = card.write_card(page, None)
    matter = yaml.safe_load(text.split("---\n")[1])
    assert (matter["base_model"], matter["base_model_relation"]) == ("them/base", "adapter")
    assert "at commit `c0ffee`" in text
    elsewhere = card.Page("me/net", info | {"base": {**info["base"], "id": "b.safetensors"}}, {}, card.About(), None)
    assert "base_model" not in yaml.safe_load(card.write_card(elsewhere, None).split("---\n")[1])


def test_cards_that_others_wrote(hub, client, name):
    push(client, FIRST, name)
    for front, tags in (("tags: vision", ["subcompress", "vision"]), ("tags: 5", ["subcompress"]), ("a: 1", None)):
        hub.put(name, "edit", README__md=f"---\n{front}\n---\nTheirs, {card.END} quoted.\n".encode())
        push(client, FIRST, name)
        text = hub.held(name)["README.md"].decode()
        assert tags is None or yaml.safe_load(text.split("---\n")[1])["tags"] == tags
        assert "Theirs" in text and "quoted." in text
    hub.put(name, "edit", README__md=b"---\na: 1\n---\n\xff")
    assert "is not UTF-8" in client("push", FIRST, name, "--onnx", "none").error
    hub.put(name, "edit", README__md=b"---\npipeline_tag: image-to-text\n---\n")
    push(client, FIRST, name)
    assert "pipeline_tag: image-to-text" in hub.held(name)["README.md"].decode()


def test_what_others_say_in_the_front_matter_stays(hub, client, name):
    """Beside ours, push after push; ours of the file before goes."""
    pushed = ("--dataset", "me/digits")
    push(client, FIRST, name, *pushed)
    text = hub.held(name)["README.md"].decode()
    matter = yaml.safe_load(text.split("---\n")[1])
    theirs = {
        "task": {"type": "other"},
        "dataset": {"name": "d", "type": "d"},
        "metrics": [{"type": "f1", "value": 0.5}],
    }
    matter["datasets"] = [*matter.get("datasets", []), "them/data"]
    matter["base_model"], matter["metrics"] = "them/net", ["f1"]
    matter["model-index"] = [*matter.get("model-index", []), {"name": "theirs", "results": [theirs]}]
    hub.put(name, "edit", README__md=f"---\n{yaml.safe_dump(matter)}---\n{text.split('---', 2)[2]}".encode())
    for path in (SECOND, SECOND, FIRST):
        push(client, path, name)
        now = yaml.safe_load(hub.held(name)["README.md"].decode().split("---\n")[1])
        assert now["base_model"] == "them/net" and "them/data" in now["datasets"] and "f1" in now["metrics"]
        assert {"name": "theirs", "results": [theirs]} in now["model-index"] and len(now["model-index"]) <= 2
        assert now["library_name"] == "subcompress"
    assert push(client, FIRST, name)["changed"] is False
    config = json.loads(hub.held(name)["config.json"])
    del config["subcompress"]["front_matter"]  # as pushes left it before they noted what they wrote
    hub.put(name, "edit", config__json=json.dumps(config).encode())
    done = client("push", FIRST, name, "--onnx", "none")
    assert f"base_model in the card of {name} was them/net: it is replaced" in done.stderr


@pytest.mark.parametrize("held", ["---\n---\nTheirs\n", "---\r\n---\r\nTheirs\n", "\ufeff---\na: 1\n---\nTheirs\n"])
def test_a_front_matter_without_keys_or_behind_a_mark(held):
    page = card.Page("me/net", subcompress.info(FIRST), {"model.safetensors": ("00", 474)}, card.About(), None)
    text = card.write_card(page, held)
    assert text.count("---\n") == 2 and text.endswith("\n\nTheirs\n")


def test_results_stay_with_the_weights(hub, client, name, small_file, small_run):
    push(client, small_file, name, "--run", small_run, "--dataset", "me/digits")
    before = hub.held(name)
    again = push(client, small_file, name)
    assert again["changed"] is False and hub.held(name) == before
    push(client, FIRST, name)
    assert ".eval_results/subcompress.yaml" not in hub.held(name)
    assert "validation split" not in hub.held(name)["README.md"].decode()


def test_the_code_on_the_card_of_a_network_of_texts_runs(tmp_path, monkeypatch):
    class Pool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weights = attention_mask.unsqueeze(-1).float()
            return self.head((self.table(input_ids) * weights).sum(1) / weights.sum(1))

    varying = [subcompress.format.facts.Input(n, "I64", (0,)) for n in ("input_ids", "attention_mask")]
    module = Pool()
    sub = subcompress.Subspace.of(module, 20)
    sub.round(4)
    subcompress.pack(sub, tmp_path / "net.safetensors", subcompress.Facts(inputs=tuple(varying)))
    subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "model.onnx", module)
    size = (tmp_path / "model.onnx").stat().st_size
    page = card.Page(
        "me/texts", subcompress.info(tmp_path / "net.safetensors"), {"model.onnx": ("0", size)}, card.About(), None
    )
    code = re.findall(r"```python\n(.*?)```", card.write_card(page, None), re.S)[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["outputs"][0].shape == (1, 3)


@pytest.mark.parametrize(
    ("text", "name"),
    [("digits", "digits"), ("a/b.py:load", "b.py:load"), ("x/r.csv,length=9,tokenizer=/home/me/bert", "r.csv")],
)
def test_what_data_are_called(text, name):
    assert card.data_name(text) == name
