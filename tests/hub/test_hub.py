"""push, pull and hub: names, by the real client against a stand-in Hub on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml
from commands import cli
from documents import TOUR, UNTRACED, blocks, changed, python
from hub_client import Client
from places import PACKED
from stand_in_hub import Blob, StandInHub

import subcompress
from subcompress import SubcompressError
from subcompress.hub import card
from subcompress.remote import Reference, is_reference
from subcompress_models import MODELS

FIRST, SECOND = PACKED / "mnist-98.safetensors", PACKED / "mnist-99.safetensors"
OURS = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One Hub for all tests, each of which takes a repository of its own."""
    hub = StandInHub(tmp_path_factory.mktemp("xet"))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def process(hub, tmp_path_factory):
    client = Client(hub.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture
def client(hub, process, tmp_path):
    """A user with write access and an empty cache; every fault that was asked for has to be met."""
    process.token, process.offline, process.xet, process.cache = "hf_writer", False, False, tmp_path / "cache"
    hub.faults.clear()
    yield process
    assert [f for f in hub.faults if f.times > 0] == []


@pytest.fixture
def name(request):
    """A repository for this test."""
    return "me/" + re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:60].strip("-")


def push(client, path, name, *options):
    done = client("push", path, name, "--onnx", "none", "--json", *options)
    assert done.exit_code == 0, done.stderr
    return done.json


# What names a repository


def test_names_of_repositories():
    assert Reference.of("hub:me/net@v1.0") == Reference("me/net", "v1.0")
    assert str(Reference.of("me/net")) == "hub:me/net"
    assert Reference.of("me/net@refs/pr/3").revision == "refs/pr/3"
    assert is_reference("hub:me/net")
    assert not is_reference("./hub:me/net") and not is_reference(Path("net.safetensors"))


NAMES_OF_NONE = ("net", "a/b/c", "a/../b", "-a/b", "a--b/c", "me/net.git", "me/n et", "me/net@", "me/net@a..b")


@pytest.mark.parametrize("text", [*NAMES_OF_NONE, "me/net@-x", "", "me/" + "n" * 97, "me/net\n", "http://x/y"])
def test_names_of_none(text):
    with pytest.raises(SubcompressError, match=r"a repository is ORG/NAME|after @ stands"):
        Reference.of(text)


def test_importing_the_library_loads_neither_onnx_nor_the_client():
    code = (
        "import sys, subcompress, subcompress.hub; print({'onnx', 'huggingface_hub', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# There and back


def test_there_and_back(hub, client, name, tmp_path):
    pushed = client("push", FIRST, name, "--license", "mit", "--tag", "v1", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    assert pushed.stderr == ""
    assert pushed.json["changed"] is True
    held = hub.held(name)
    assert held.keys() == OURS | {"model.onnx", ".gitattributes"}
    assert held["model.safetensors"] == FIRST.read_bytes()
    assert hub.messages(name) == ["Push 474 bytes with subcompress", "initial commit"]
    assert hub.repos[name].tags == {"v1": pushed.json["commit"]}
    config = json.loads(held["config.json"])
    assert config["library_name"] == "subcompress"
    info = subcompress.info(FIRST)
    assert all(config["subcompress"][k] == info[k] for k in ("seed", "d", "D", "digest", "layout", "facts"))

    sent = hub.count("PUT", "/lfs/")
    again = client("push", FIRST, name, "--license", "mit", "--tag", "v1")
    assert again.stdout.startswith("nothing to publish, it is all there")
    assert (len(hub.messages(name)), hub.count("PUT", "/lfs/")) == (2, sent)

    output = tmp_path / "net.safetensors"
    pulled = client("pull", name, "-o", output, "--json").json
    assert output.read_bytes() == FIRST.read_bytes()
    assert pulled == {
        "file": str(output),
        "file_bytes": 474,
        "id": name,
        "commit": pushed.json["commit"],
        "cached": False,
    }
    assert client("info", f"hub:{name}", "--json").json == info
    assert client("unpack", f"hub:{name}@v1", "-o", tmp_path / "dense.safetensors").exit_code == 0
    assert client.python(f"import subcompress; result = subcompress.info('hub:{name}@v1')") == info
    assert client("verify", f"hub:{name}@main").exit_code == 0


@pytest.mark.parametrize("text", [TOUR, "docs/HUB.md"])
def test_commands_of_the_documents(hub, client, name, small_file, small_run, tmp_path, text):
    """Every command that speaks to a Hub, in a folder where the commands before it have been."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(small_run)
    (tmp_path / "net.safetensors").write_bytes(small_file.read_bytes())
    client.python(f"import os; os.chdir({str(tmp_path)!r}); result = None")
    lines = [line for block in blocks(text, "") for line in block.lines if "ORG/NAME" in line]
    assert {line.split()[1] for line in lines} == {"push", "pull", "verify"}
    ours = (("ORG/NAME", name), ("@v1", ""), *(() if text == TOUR else UNTRACED))
    for line in lines:
        done = client(*changed(line, ours).split()[1:])
        assert done.exit_code == 0, (line, done.stderr)
    if python(text):
        client.python(changed(python(text), ours) + "\nresult = None")


def test_by_xet(hub, client, name, tmp_path):
    client.xet = True
    data = SECOND.read_bytes()
    done = client("push", SECOND, name, "--onnx", "none", "--json")
    if done.exit_code != 0 or hub.xet_hash(hashlib.sha256(data).hexdigest()) is None:
        pytest.skip(f"this hf-xet takes no store on disk: {done.stderr[-300:]}")
    assert hub.held(name)["model.safetensors"] is None  # it never came by HTTP
    assert hub.count("GET", f"{name}/xet-write-token") > 0
    assert push(client, SECOND, name)["changed"] is False
    assert client("pull", name, "-o", tmp_path / "net.safetensors").exit_code == 0
    assert (tmp_path / "net.safetensors").read_bytes() == data
    assert hub.count("GET", f"{name}/xet-read-token") > 0


def test_another_file_takes_the_graph_of_the_first_away(hub, client, name):
    assert client("push", FIRST, name).exit_code == 0
    kept = client.python(f"import subcompress; result = subcompress.push({str(FIRST)!r}, {name!r}).changed")
    assert kept is False  # without a module, the graph of the same weights stays
    assert push(client, SECOND, name)["changed"]
    assert hub.held(name).keys() == OURS | {".gitattributes"}
    assert len(hub.messages(name)) == 3
    assert "There is no `model.onnx`" in hub.held(name)["README.md"].decode()


def test_branches_and_tags(hub, client, name):
    push(client, FIRST, name)
    pushed = push(client, SECOND, f"{name}@trial", "--tag", "v2")
    assert hub.held(name)["model.safetensors"] == FIRST.read_bytes()
    assert hub.held(name, "trial")["model.safetensors"] == SECOND.read_bytes()
    assert client("info", f"hub:{name}@v2", "--json").json["file_bytes"] == 1_274
    assert client("info", f"hub:{name}@{pushed['commit']}", "--json").json["file_bytes"] == 1_274
    assert "a tag stays where it is" in client("push", FIRST, name, "--onnx", "none", "--tag", "v2").error


def test_private_ones(hub, client, name):
    push(client, FIRST, name, "--private")
    assert hub.repos[name].private
    assert "is private, and public was asked for" in client("push", SECOND, name, "--public", "--onnx", "none").error
    assert len(hub.messages(name)) == 2


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
    assert "another's" in client("push", FIRST, name, "--run", small_run, "--onnx", "none").error


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
    text = card.write(page, None)
    matter = yaml.safe_load(text.split("---\n")[1])
    assert (matter["base_model"], matter["base_model_relation"]) == ("them/base", "adapter")
    assert "at commit `c0ffee`" in text
    elsewhere = card.Page("me/net", info | {"base": {**info["base"], "id": "b.safetensors"}}, {}, card.About(), None)
    assert "base_model" not in yaml.safe_load(card.write(elsewhere, None).split("---\n")[1])


# Bases that lie on the Hub


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two states of a base's weights, as files, and the code of a network on it, with a head of its own."""
    folder = tmp_path_factory.mktemp("bases")
    for seed in (0, 1):
        torch.manual_seed(seed)
        safetensors.torch.save_file(torch.nn.Sequential(torch.nn.Linear(8, 6)).state_dict(), folder / f"{seed}")
    (folder / "own.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))\n"
    )
    return folder


def pack_on(client, folder, base, output, **options):
    code = f"""
import sys, torch, subcompress
sys.path.insert(0, {str(folder)!r})
import own
torch.manual_seed(5)
sub = subcompress.Subspace.of(own.net(), 12, base={base!r}, act_on="all", **{options!r})
with torch.no_grad():
    sub.z.normal_()
sub.round(4)
result = subcompress.pack(sub, {str(output)!r}, subcompress.Facts(input_shape=(8,)))
"""
    return client.python(code)


def test_a_file_on_a_base_of_the_hub(hub, client, name, bases, tmp_path):
    """The file names repository, commit and digest; whoever has it fetches that commit, wherever the branch is now."""
    base, file, dense = f"{name}-base", tmp_path / "net.safetensors", tmp_path / "dense.safetensors"
    hub.make(base)
    commit = hub.put(base, "weights", model__safetensors=(bases / "0").read_bytes())
    assert pack_on(client, bases, f"hub:{base}", file) < 400
    found = client("info", file, "--json").json
    assert found["base"].items() >= {"id": f"hub:{base}", "revision": commit}.items()
    assert f"on the base hub:{base}@{commit}" in client("info", file).stdout
    pushed = client("push", file, name, "--model", f"{bases}/own.py:net", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    assert "model.onnx" not in pushed.json["files"]
    card_text = hub.held(name)["README.md"].decode()
    assert f"base_model: {base}" in card_text and "subcompress verify net.safetensors\n" in card_text

    moved = hub.put(base, "other weights", model__safetensors=(bases / "1").read_bytes())
    client.cache = tmp_path / "another"
    assert client("verify", f"hub:{name}", "--json").json["ok"] is True
    assert client("unpack", f"hub:{name}", "-o", dense).exit_code == 0
    assert safetensors.torch.load_file(dense).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    asked = len(hub.log)
    assert client("verify", file, "--json").json["ok"] is True  # the commit is in the cache: nothing to ask
    assert len(hub.log) == asked
    refused = client("verify", file, "--base", f"hub:{base}").error
    assert found["base"]["digest"] in refused and f"hub:{base} has" in refused
    here = client("unpack", file, "--base", bases / "0", "-o", dense, "--json")
    assert here.exit_code == 0 and len(hub.log) > asked
    graph = client("unpack", file, "--model", f"{bases}/own.py:net", "-o", tmp_path / "net.onnx")
    assert graph.exit_code == 0, graph.stderr
    assert moved != commit


def test_bases_that_cannot_be_had(hub, client, name, bases, tmp_path):
    base, file, out = f"{name}-base", tmp_path / "net.safetensors", tmp_path / "dense.safetensors"
    repo = hub.make(base)
    commit = hub.put(base, "weights", model__safetensors=(bases / "0").read_bytes())
    pack_on(client, bases, str(bases / "0"), file, base_name=f"hub:{base}@{commit}")
    repo.gated = True
    assert f"is gated: ask for access at {hub.url}/{base}" in client("unpack", file, "-o", out).error
    repo.gated, repo.private, client.token = False, True, ""
    assert f"there is no hub:{base}@{commit} that you may see" in client("unpack", file, "-o", out).error
    repo.private, client.token, client.offline = False, "hf_reader", True
    assert "HF_HUB_OFFLINE" in client("unpack", file, "-o", out).error
    client.offline = False
    hub.repos[f"{base}-new"] = hub.repos.pop(base)
    hub.renamed[base] = f"{base}-new"
    assert client("unpack", file, "-o", out).exit_code == 0
    del hub.repos[f"{base}-new"]
    assert client("unpack", file, "-o", out).exit_code == 0  # it is in the cache
    client.cache = tmp_path / "empty"
    assert "deleted or moved" in client("unpack", file, "-o", out).error
    del hub.renamed[base]
    hub.make(base)
    hub.put(base, "no weights", config__json=b"{}")
    assert (
        "a base has its weights in model.safetensors or pytorch_model.bin"
        in client("unpack", file, "--base", f"hub:{base}", "-o", out).error
    )
    hub.put(base, "ours", model__safetensors=FIRST.read_bytes())
    assert "is a subcompress file: unpack it first" in client("unpack", file, "--base", f"hub:{base}", "-o", out).error


def test_a_base_that_comes_damaged_or_is_not_the_one_in_the_cache(hub, client, name, bases, tmp_path):
    base, file, out = f"{name}-base", tmp_path / "net.safetensors", tmp_path / "dense.safetensors"
    hub.make(base)
    commit = hub.put(base, "weights", model__safetensors=(bases / "0").read_bytes())
    hub.fail("GET", f"{base}/resolve/.*/model.safetensors", "flip")
    pack_on(client, bases, f"hub:{base}", file)
    assert client("verify", file, "--base", bases / "0", "--json").json["ok"] is True
    hub.fail("GET", f"{base}/resolve/.*/model.safetensors", "flip", times=2)
    client.cache = tmp_path / "another"
    assert "not what the Hub promises, twice" in client("unpack", file, "-o", out).error
    assert client("unpack", file, "-o", out).exit_code == 0

    torch.save(safetensors.torch.load_file(bases / "1"), tmp_path / "other.bin")
    client.cache = tmp_path / "a third"
    both = hub.put(base, "another form", pytorch_model__bin=(tmp_path / "other.bin").read_bytes())
    client.python(f"from huggingface_hub import hf_hub_download as f; f('{base}', 'pytorch_model.bin'); result = 0")
    pack_on(client, bases, str(bases / "0"), file, base_name=f"hub:{base}@{both}")
    assert client("unpack", file, "-o", out).exit_code == 0  # though the cache had only the other file of that commit
    assert commit != both


def test_a_file_does_not_make_its_reader_fetch_anything_large(hub, client, name, bases, tmp_path, monkeypatch):
    base, file = f"{name}-base", tmp_path / "net.safetensors"
    hub.make(base)
    huge = safetensors.torch.save({"0.weight": torch.zeros(1 << 25)})
    commit = hub.put(base, "large", model__safetensors=huge)
    pack_on(client, bases, str(bases / "0"), file, base_name=f"hub:{base}@{commit}")
    asked = hub.count("GET", f"{base}/resolve")
    assert "if you trust it" in client("unpack", file, "-o", tmp_path / "x.safetensors").error
    assert hub.count("GET", f"{base}/resolve") == asked


# Repositories that are not what was asked for


@pytest.mark.parametrize(
    "config", [b'{"subcompress": {"sha256": [1]}}', b'{"subcompress": null}', b"[" * 100_000, b"[1]", b"\xff"]
)
def test_settings_that_are_none_of_ours(hub, client, name, config):
    hub.make(name)
    hub.put(name, "theirs", config__json=config)
    assert "no push of subcompress wrote" in client("push", FIRST, name, "--onnx", "none").error
    assert client("push", FIRST, name, "--onnx", "none", "--force").exit_code == 0


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
    assert f"base_model in the card of {name} was them/net: it is written anew" in done.stderr


def test_weights_of_others_are_not_shadowed(hub, client, name):
    for i, other in enumerate(
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    ):
        hub.make(f"{name}{i}")
        hub.repos[f"{name}{i}"].commit("main", "theirs", {other: Blob("0" * 40, 2, b"{}", False)})
        line = client("push", FIRST, f"{name}{i}", "--onnx", "none").error
        assert f"holds weights in {other}" in line and "--force" in line
    push(client, FIRST, f"{name}0", "--force")
    assert push(client, SECOND, f"{name}0")["changed"]  # it is ours by now


@pytest.mark.parametrize("held", ["---\n---\nTheirs\n", "---\r\n---\r\nTheirs\n", "\ufeff---\na: 1\n---\nTheirs\n"])
def test_a_front_matter_without_keys_or_behind_a_mark(held):
    page = card.Page("me/net", subcompress.info(FIRST), {"model.safetensors": ("00", 474)}, card.About(), None)
    text = card.write(page, held)
    assert text.count("---\n") == 2 and text.endswith("\n\nTheirs\n")


def test_arguments_that_settings_cannot_hold():
    class Net(
        torch.nn.Module, subcompress.HubMixin, coders={torch.dtype: (str, lambda text: getattr(torch, text[6:]))}
    ):
        def __init__(self, width: int = 3, act: object = torch.nn.ReLU, *rest: object, kind: object = None) -> None:
            super().__init__()

    @dataclasses.dataclass
    class Settings:
        width: int = 3

    class Configured(torch.nn.Module, subcompress.HubMixin):
        def __init__(self, config: Settings, width: int = 4) -> None:
            super().__init__()

    for net in (Net(), Net(4), Net(4, torch.nn.ReLU), Net(act=None), Net(kind=torch.float16), Configured(Settings())):
        assert net._config() is not None
    assert Net(kind=torch.float16)._config()["kind"] == "torch.float16"
    given = {"act": torch.nn.ReLU(), "width": torch.ones(2), "kind": [torch.nn.Identity()]}
    for name, value in given.items():
        with pytest.raises(SubcompressError, match=f"config.json holds what Net was given, and cannot hold {name}: "):
            Net(**{name: value})._config()
    with pytest.raises(SubcompressError, match="cannot hold rest"):
        Net(3, None, 5)._config()
    with pytest.raises(SubcompressError, match="cannot hold width"):
        Configured(Settings(), 7)._config()


def test_results_stay_with_the_weights(hub, client, name, small_file, small_run):
    push(client, small_file, name, "--run", small_run, "--dataset", "me/digits")
    before = hub.held(name)
    again = push(client, small_file, name)
    assert again["changed"] is False and hub.held(name) == before
    push(client, FIRST, name)
    assert ".eval_results/subcompress.yaml" not in hub.held(name)
    assert "validation split" not in hub.held(name)["README.md"].decode()


def test_a_token_is_never_shown(hub, client):
    code = """
from subcompress import SubcompressError
from subcompress.remote import Reference, transport
heard = []
mine = transport.Hub("hf_oauth_SECRETsecret.abc\\n", heard.append)
mine.say("Bearer hf_oauth_SECRETsecret.abc, hf_abcdefghijklmnopqrstuvwxyz")
said = str(transport._translated(ValueError("got hf_oauth_SECRETsecret.abc"), Reference("a/b"), mine.token))
try:
    transport.Hub("hf_a\\x00b")
except SubcompressError as e:
    said += str(e)
result = heard + [said]
"""
    found = client.python(code.replace("\\\\", "\\"))
    assert found[0] == "Bearer hf_..., hf_..."
    assert "SECRET" not in "".join(found) and "one line of printable characters" in found[1]


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
    code = re.findall(r"```python\n(.*?)```", card.write(page, None), re.S)[0]
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


def test_something_else_under_our_names(hub, client, name, tmp_path):
    hub.make(name)
    hub.put(name, "theirs", model__safetensors=b"\x10" + bytes(7) + b'{"w":{"dtype":1}}' + bytes(40))
    line = client("push", FIRST, name, "--onnx", "none").error
    assert "holds a model.safetensors that no push of subcompress wrote" in line and "--force" in line
    line = client("pull", name, "-o", tmp_path / "net.safetensors").error
    assert "holds something else under the name model.safetensors" in line
    assert not (tmp_path / "net.safetensors").exists()
    assert hub.count("GET", f"{name}/resolve/main/model.safetensors") == 1  # it came as it is: not fetched again
    push(client, FIRST, name, "--force")
    hub.put(name, "theirs again", model__safetensors=b"no file of ours")
    assert "no push of subcompress wrote" in client("push", FIRST, name, "--onnx", "none").error
    hub.make(name + "2")
    hub.put(name + "2", "a transformer", config__json=b'{"model_type": "bert"}')
    assert "holds a config.json" in client("push", FIRST, name + "2", "--onnx", "none").error
    assert "holds model.safetensors; " in client("pull", name + "2", "-o", tmp_path / "x").error


def test_a_large_file_of_others_is_not_fetched(hub, client, name, tmp_path):
    hub.make(name)
    hub.put(name, "dense", model__safetensors=bytes(1 << 24) + b"1")
    assert "is it the dense model?" in client("pull", name, "-o", tmp_path / "x").error
    assert hub.count("GET", f"{name}/resolve") == 0


def test_closed_doors(hub, client, name, tmp_path):
    push(client, FIRST, name)
    out = tmp_path / "x.safetensors"
    hub.repos[name].gated = True
    assert f"is gated: ask for access at {hub.url}/{name}" in client("pull", name, "-o", out).error
    hub.repos[name].gated, hub.repos[name].private = False, True
    client.token = ""
    assert "there is no hub:" in client("pull", name, "-o", out).error
    assert "hf auth login" in client("info", f"hub:{name}").error
    client.token = "hf_reader"
    assert "may not do this" in client("push", SECOND, name, "--onnx", "none").error
    assert "the token" not in client("pull", name, "-o", out).stdout
    assert "may not do this" in client("push", SECOND, f"{name}-new", "--onnx", "none").error
    client.token = "hf_wrong"
    assert "missing, wrong or expired" in client("pull", name, "-o", out).error
    assert "missing, wrong or expired" in client("push", SECOND, name, "--onnx", "none").error
    client.token = ""
    assert "missing, wrong or expired" in client("push", FIRST, "me/anew", "--onnx", "none").error
    assert len(hub.messages(name)) == 2
    assert f"{name}-new" not in hub.repos


def test_gone_and_moved(hub, client, name, tmp_path):
    out = tmp_path / "x.safetensors"
    assert "deleted or moved" in client("pull", name, "-o", out).error
    push(client, FIRST, name)
    assert "has no branch, tag or commit v9" in client("pull", f"{name}@v9", "-o", out).error
    hub.repos[f"{name}-new"] = hub.repos.pop(name)
    hub.renamed[name] = f"{name}-new"
    done = client("pull", name, "-o", out)
    assert done.exit_code == 0 and f"{name} is called {name}-new now" in done.stderr
    assert client("push", SECOND, name, "--onnx", "none", "--json").json["id"] == f"{name}-new"
    assert hub.held(f"{name}-new")["model.safetensors"] == SECOND.read_bytes()
    del hub.repos[f"{name}-new"]
    assert "deleted or moved" in client("pull", name, "-o", out).error  # though a copy is in the cache


def test_a_branch_that_moves_while_it_is_fetched(hub, client, name, tmp_path):
    """The commit is the one that was there when we looked, and the file is that commit's."""
    before = push(client, FIRST, name)["commit"]
    hub.fail(
        "HEAD", f"{name}/resolve/main/model", lambda: hub.put(name, "moved", model__safetensors=SECOND.read_bytes())
    )
    assert client("pull", name, "-o", tmp_path / "x", "--json").json["commit"] == before
    assert (tmp_path / "x").read_bytes() == FIRST.read_bytes()
    assert client("pull", name, "-o", tmp_path / "x", "--json").json["commit"] == hub.repos[name].heads["main"]
    assert (tmp_path / "x").read_bytes() == SECOND.read_bytes()
    hub.put(name, "moved again", model__safetensors=FIRST.read_bytes())
    hub.fail(
        "HEAD", f"{name}/resolve/main/model", 503
    )  # where the client would give the copy of before, and say nothing
    assert client("pull", name, "-o", tmp_path / "x").exit_code == 0
    assert (tmp_path / "x").read_bytes() == FIRST.read_bytes()


def test_a_digest_that_is_asked_for(hub, client, name, tmp_path):
    push(client, FIRST, name)
    digest = subcompress.info(FIRST)["digest"]
    assert client("pull", name, "-o", tmp_path / "x", "--digest", digest.upper()).exit_code == 0
    push(client, SECOND, name)
    assert "were asked for" in client("pull", name, "-o", tmp_path / "y", "--digest", digest).error
    assert not (tmp_path / "y").exists()


# A line and a Hub with faults


@pytest.mark.parametrize("kind", ["flip", "short", "cut", 500, 503, "drop"])
def test_a_download_that_fails_once(hub, client, name, tmp_path, kind):
    hub.repos.setdefault(name, hub.make(name))
    hub.put(name, "push", model__safetensors=SECOND.read_bytes(), config__json=b"{}")
    hub.fail("GET", f"{name}/resolve/main/model.safetensors", kind)
    done = client("pull", name, "-o", tmp_path / "x")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "x").read_bytes() == SECOND.read_bytes()
    assert len(done.stderr.strip().splitlines()) >= 1  # and it said so


def test_a_download_that_is_damaged_twice(hub, client, name, tmp_path):
    push(client, FIRST, name)
    hub.fail("GET", f"{name}/resolve/.*/model.safetensors", "flip", times=2)
    done = client("pull", name, "-o", tmp_path / "x")
    assert "not what the Hub promises, twice" in done.error
    assert not (tmp_path / "x").exists()
    assert client("pull", name, "-o", tmp_path / "x").exit_code == 0  # and the cache has not kept it


@pytest.mark.parametrize("kind", [500, 503, "drop"])
@pytest.mark.parametrize("step", ["repos/create", "validate-yaml", "commit/main"])
def test_a_push_that_fails_once(hub, client, name, kind, step):
    hub.fail("POST", step, kind)
    assert push(client, FIRST, name)["changed"] is True
    assert len(hub.messages(name)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [500, 503, "drop"])
@pytest.mark.parametrize(
    "method, step", [("POST", "preupload"), ("POST", "batch"), ("PUT", "/lfs/"), ("POST", "/verify")]
)
def test_an_upload_that_fails_once(hub, client, name, method, step, kind):
    hub.objects.clear()
    hub.fail(method, step, kind)
    done = client("push", FIRST, name, "--onnx", "none")
    assert done.exit_code == 0 and "Retrying" in done.stderr
    assert hub.held(name)["model.safetensors"] == FIRST.read_bytes()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, client, name):
    hub.fail("POST", f"{name}/commit", "lose")
    assert push(client, FIRST, name)["changed"] is True
    assert hub.messages(name) == ["Push 474 bytes with subcompress", "initial commit"]


def test_a_hub_that_stays_in_trouble(hub, client, name, tmp_path):
    hub.fail("POST", "/commit/", 503, times=4)
    done = client("push", FIRST, name, "--onnx", "none")
    assert "the Hub answers 503, it has trouble of its own" in done.error
    assert done.stderr.count("trying again in") == 3
    assert hub.messages(name) == ["initial commit"]
    hub.fail("GET", f"models/{name}", 500, times=4)
    assert "the Hub answers 500" in client("pull", name, "-o", tmp_path / "x").error


def test_too_many_requests(hub, client, name, tmp_path):
    push(client, FIRST, name)
    hub.fail("GET", f"models/{name}", 429, Retry_After="1")
    done = client("pull", name, "-o", tmp_path / "x")
    assert done.exit_code == 0 and "too many requests; trying again in 1 s" in done.stderr
    client.cache = tmp_path / "cold"
    hub.fail("GET", f"models/{name}", 429, Retry_After="3600")
    assert "try again in 3600 s" in client("pull", name, "-o", tmp_path / "y").error
    hub.fail("POST", f"{name}/commit", 429, RateLimit='"api";r=0;t=300')
    assert "try again in 300 s" in client("push", SECOND, name, "--onnx", "none").error


@pytest.mark.parametrize("status", [409, 412, None])
def test_a_commit_race(hub, client, name, status):
    """Somebody commits between our look and our commit: what they did stays, also in the card."""
    push(client, FIRST, name)
    readme = hub.held(name)["README.md"] + b"\nTheir words.\n"

    def theirs():
        hub.put(name, "theirs", notes__txt=b"notes", README__md=readme)

    hub.fail("POST", f"{name}/commit", theirs if status is None else status)
    assert push(client, SECOND, name)["changed"] is True
    if status is None:
        assert hub.messages(name)[:2] == ["Push 1274 bytes with subcompress", "theirs"]
        assert hub.held(name)["notes.txt"] == b"notes"
        assert hub.held(name)["README.md"].endswith(b"Their words.\n")


def test_a_race_that_never_ends(hub, client, name):
    hub.fail("POST", f"{name}/commit", 412, times=20)
    assert "was changed meanwhile" in client("push", FIRST, name, "--onnx", "none").error


def test_other_refusals(hub, client, name):
    hub.fail("POST", f"{name}/preupload", 418)
    assert "the Hub refuses this for hub:" in client("push", FIRST, name, "--onnx", "none").error
    hub.fail("POST", f"{name}/preupload", 403)
    assert "your token may not do this" in client("push", FIRST, name, "--onnx", "none").error


def test_two_processes_at_once_lose_nothing(hub, client, name, tmp_path):
    """Both make the repository and push a model and words of their own, again and again."""
    other = Client(hub.url, tmp_path / "home")
    try:
        for turn in range(3):
            for c, path in ((client, FIRST), (other, SECOND)):
                c.begin(
                    "push", path, name, "--onnx", "none", "--message", f"{path.stem} {turn}", "--license", f"l{turn}"
                )
            for c in (client, other):
                done = c.end()
                assert done.exit_code == 0, done.stderr
        for c, id in ((client, f"{name}-a"), (other, f"{name}-b")):  # beside each other they do not wait
            c.begin("push", FIRST, id, "--onnx", "none")
        assert [c.end().exit_code for c in (client, other)] == [0, 0]
    finally:
        other.close()
    messages = hub.messages(name)
    assert sorted(messages) == sorted([f"{p.stem} {t}" for p in (FIRST, SECOND) for t in range(3)] + ["initial commit"])
    sizes = {
        hub.repos[name].commits[c].tree["model.safetensors"].size
        for c in hub.repos[name].commits
        if len(hub.repos[name].commits[c].tree) > 1
    }
    assert sizes == {474, 1_274}


# Without a Hub, without room, without patience


def test_a_warm_cache_without_a_hub(hub, client, name, tmp_path):
    push(client, FIRST, name)
    assert client("pull", name, "-o", tmp_path / "x").exit_code == 0
    client.offline = True
    asked = len(hub.log)
    done = client("pull", name, "-o", tmp_path / "y", "--json")
    assert done.exit_code == 0 and done.json["cached"] is True
    assert "using the copy in the cache, of commit" in done.stderr
    assert client("info", f"hub:{name}").exit_code == 0
    assert "HF_HUB_OFFLINE" in client("pull", "me/other", "-o", tmp_path / "z").error
    assert "HF_HUB_OFFLINE" in client("push", FIRST, name).error
    assert len(hub.log) == asked
    client.offline = False
    hub.fail("GET", f"models/{name}", "drop", times=4)
    done = client("pull", name, "-o", tmp_path / "z")
    assert done.exit_code == 0 and "cannot be reached" in done.stderr and "using the copy" in done.stderr
    hub.fail("GET", "models/me/other", "drop", times=4)
    assert f"the Hub at {hub.url} cannot be reached" in client("pull", "me/other", "-o", tmp_path / "w").error


def test_a_damaged_copy_in_the_cache(hub, client, name, tmp_path):
    push(client, FIRST, name)
    assert client("pull", name, "-o", tmp_path / "x").exit_code == 0
    (blob,) = [p for p in client.cache.rglob("blobs/*") if p.read_bytes() == FIRST.read_bytes()]
    damaged = bytearray(FIRST.read_bytes())
    damaged[-9] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(damaged)
    client.offline = True
    assert "error: " in client("pull", name, "-o", tmp_path / "y").error
    client.offline = False
    done = client("pull", name, "-o", tmp_path / "y")
    assert "came damaged; fetching it once more" in done.stderr
    assert (tmp_path / "y").read_bytes() == FIRST.read_bytes()


def test_a_full_disk(hub, client, name, tmp_path):
    """The kernel refuses every byte after the first hundred: in the cache first, then where the file is to be."""
    push(client, SECOND, name)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY)); result = None"
    client.python(limit.format(1_000))
    try:
        line = client("pull", name, "-o", tmp_path / "x").error
        assert "the cache of downloads cannot be written: File too large; make room" in line
        client.python(limit.format("resource.RLIM_INFINITY"))
        assert client("info", f"hub:{name}").exit_code == 0
        client.python(limit.format(1_000))
        assert "x cannot be written: File too large" in client("pull", name, "-o", tmp_path / "x").error
    finally:
        client.python(limit.format("resource.RLIM_INFINITY"))
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize(
    "step", ["commit", *(pytest.param(step, marks=pytest.mark.slow) for step in ("preupload", "xet-write-token"))]
)
def test_a_push_that_is_interrupted(hub, client, name, tmp_path, step):
    """Ctrl-C while the Hub is about to take the commit: all or nothing, and the same command goes through."""
    there, gone = threading.Event(), threading.Event()
    hub.make(name)

    def wait():
        there.set()
        gone.wait(30)

    hub.objects.clear()
    hub.fail("GET" if step.startswith("xet") else "POST", f"{name}/{step}", wait)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": str(int(step != "xet-write-token")),
    }
    command = [sys.executable, "-m", "subcompress_cli", "push", FIRST, name, "--onnx", "none"]
    with subprocess.Popen(
        command,
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        assert there.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    gone.set()
    assert (process.returncode, out) == (130, "")
    assert err == (
        "interrupted: nothing was published, unless it had just ended; the same command is safe to give again\n"
    )
    push(client, FIRST, name)
    assert hub.messages(name) == ["Push 474 bytes with subcompress", "initial commit"]


@pytest.mark.slow
def test_repositories_are_served(hub, client, name, bases, tmp_path):
    """One that stands by itself, and one on a base of the Hub, which is fetched too."""
    alone, based, base = f"{name}-alone", f"{name}-based", f"{name}-base"
    push(client, FIRST, alone, "--onnx", "none")
    hub.make(base)
    hub.put(base, "weights", model__safetensors=(bases / "0").read_bytes())
    pack_on(client, bases, f"hub:{base}", tmp_path / "net.safetensors")
    push(client, tmp_path / "net.safetensors", based, "--onnx", "none")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_writer"}
    command = [sys.executable, "-m", "subcompress_cli", "serve", f"hub:{alone}", f"mine=hub:{based}", "--port", "0"]
    command += ["--model", f"{bases}/own.py:net"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        address, _, rest = server.stdout.readline().partition(": ")
        assert rest == "2 models\n"
        given = {}
        for model, shape in ((alone.partition("/")[2], [1, 1, 28, 28]), ("mine", [1, 8])):
            x = {"name": "input", "shape": shape, "datatype": "FP32", "data": [0.5] * math.prod(shape)}
            data = json.dumps({"inputs": [x]}).encode()
            with urllib.request.urlopen(f"{address}/v2/models/{model}/infer", data, timeout=60) as answer:
                given[model] = torch.tensor(json.load(answer)["outputs"][0]["data"])
        server.terminate()
        assert server.wait(60) == 0
    with torch.no_grad():
        wanted = subcompress.load(FIRST, MODELS["conv3-4-6-8"]())(torch.full((1, 1, 28, 28), 0.5))
        assert torch.allclose(given[alone.partition("/")[2]], wanted[0], atol=1e-4)
        net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        wanted = subcompress.load(tmp_path / "net.safetensors", net, base=bases / "0")(torch.full((1, 8), 0.5))
        assert torch.allclose(given["mine"], wanted[0], atol=1e-4)


# From Python


def test_a_class_of_ones_own(hub, client, name, tmp_path):
    code = f"""
import json
from pathlib import Path
import torch
import subcompress
from torch import nn
from subcompress_models import MODELS

class Net(nn.Module, subcompress.HubMixin):
    def __init__(self, kind="conv3-4-6-8", seed=0):
        super().__init__()
        self.kind, self.seed = kind, seed
        for name, child in MODELS[kind]().named_children():
            self.add_module(name, child)
    def forward(self, x):
        return type(MODELS[self.kind]()).forward(self, x)

net = Net.from_pretrained({str(FIRST)!r}, seed=5)
url = net.push_to_hub({name!r}, commit_message="mine", model_card_kwargs={{"license": "mit"}})
back = Net.from_pretrained({name!r})
same = all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), back.state_dict().values()))
back.save_pretrained({str(tmp_path / "saved")!r})
third = Net.from_pretrained({str(tmp_path / "saved")!r}, kind="conv3-4-6-8")
plain = subcompress.from_pretrained({name!r}, MODELS["conv3-4-6-8"]())
errors = []
for bad in (Net(), third):
    next(bad.parameters()).data += 1
    try:
        bad.save_pretrained({str(tmp_path / "bad")!r})
    except subcompress.SubcompressError as e:
        errors.append(str(e))
try:
    Net.from_pretrained("me/nowhere")
except subcompress.SubcompressError as e:
    errors.append(str(e))
result = [url, same, back.seed, third.seed, sorted(p.name for p in Path({str(tmp_path / "saved")!r}).iterdir()), errors]
"""
    url, same, seed, third, saved, errors = client.python(code)
    assert url.startswith(f"{hub.url}/{name}/commit/")
    assert (same, seed, third) == (True, 5, 5)
    assert "mit" in hub.held(name)["README.md"].decode()
    assert set(saved) == OURS
    assert hub.messages(name)[0] == "mine"
    assert hub.held(name).keys() == OURS | {"model.onnx", ".gitattributes"}
    session = onnxruntime.InferenceSession(hub.held(name)["model.onnx"])
    assert session.get_inputs()[0].shape[1:] == [1, 28, 28]
    assert (
        "this one was not" in errors[0]
        and "have changed since" in errors[1]
        and "there is no hub:me/nowhere" in errors[2]
    )


def test_mistakes_before_anything_is_sent(hub, client, tmp_path):
    asked = len(hub.log)
    assert "a repository is ORG/NAME" in client("push", FIRST, "net").error
    assert "a repository is ORG/NAME" in client("info", "hub:net").error
    assert "a repository is ORG/NAME" in client("pull", "a/b/c", "-o", tmp_path / "x").error
    assert "No such file" in client("push", tmp_path / "none", "me/net").error
    assert "is not a finished run" in client("push", FIRST, "me/net", "--run", tmp_path).error
    line = client("push", FIRST, "me/net", "--model", "lenet").error
    assert "the file holds" in line and "--onnx none" in line
    assert client("push", FIRST, "me/net", "--onnx", "both").exit_code == 2
    assert len(hub.log) == asked


def test_a_file_that_is_called_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub:x").write_bytes(FIRST.read_bytes())
    assert cli("info", "./hub:x").exit_code == 0
