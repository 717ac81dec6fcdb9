"""push, pull and hub: names, by the real client against a stand-in Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch
from commands import cli
from documents import TOUR, UNTRACED, blocks, changed, python
from on_hub import FIRST, OURS, SECOND, pack_on, push

import subcompress
from subcompress import SubcompressError
from subcompress.remote import Reference, is_reference

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
    with pytest.raises(SubcompressError, match=r"a repository must be ORG/NAME|must follow @"):
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
    assert again.stdout.startswith("nothing to publish: it is all there already")
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
    hub.objects.clear()  # another test may have sent this file
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
    assert "tags are not moved" in client("push", FIRST, name, "--onnx", "none", "--tag", "v2").error


def test_private_ones(hub, client, name):
    push(client, FIRST, name, "--private")
    assert hub.repos[name].private
    assert "is private, but public was asked for" in client("push", SECOND, name, "--public", "--onnx", "none").error
    assert len(hub.messages(name)) == 2


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
        "has no model.safetensors or pytorch_model.bin"
        in client("unpack", file, "--base", f"hub:{base}", "-o", out).error
    )
    hub.put(base, "ours", model__safetensors=FIRST.read_bytes())
    assert (
        "not the weights of a base: unpack it first" in client("unpack", file, "--base", f"hub:{base}", "-o", out).error
    )


def test_a_base_that_comes_damaged_or_is_not_the_one_in_the_cache(hub, client, name, bases, tmp_path):
    base, file, out = f"{name}-base", tmp_path / "net.safetensors", tmp_path / "dense.safetensors"
    hub.make(base)
    commit = hub.put(base, "weights", model__safetensors=(bases / "0").read_bytes())
    hub.fail("GET", f"{base}/resolve/.*/model.safetensors", "flip")
    pack_on(client, bases, f"hub:{base}", file)
    assert client("verify", file, "--base", bases / "0", "--json").json["ok"] is True
    hub.fail("GET", f"{base}/resolve/.*/model.safetensors", "flip", times=2)
    client.cache = tmp_path / "another"
    assert "was damaged twice" in client("unpack", file, "-o", out).error
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
        "this network was not loaded from one" in errors[0]
        and "have changed since" in errors[1]
        and "there is no hub:me/nowhere" in errors[2]
    )


def test_mistakes_before_anything_is_sent(hub, client, tmp_path):
    asked = len(hub.log)
    assert "a repository must be ORG/NAME" in client("push", FIRST, "net").error
    assert "a repository must be ORG/NAME" in client("info", "hub:net").error
    assert "a repository must be ORG/NAME" in client("pull", "a/b/c", "-o", tmp_path / "x").error
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
