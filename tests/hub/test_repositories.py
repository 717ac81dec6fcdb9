"""Repositories that are not what was asked for: settings, weights and names of others, closed doors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from on_hub import FIRST, SECOND, push
from stand_in_hub import Blob

import subcompress
from subcompress import SubcompressError

# Repositories that are not what was asked for


@pytest.mark.parametrize(
    "config", [b'{"subcompress": {"sha256": [1]}}', b'{"subcompress": null}', b"[" * 100_000, b"[1]", b"\xff"]
)
def test_settings_that_are_none_of_ours(hub, client, name, config):
    hub.make(name)
    hub.put(name, "theirs", config__json=config)
    assert "subcompress did not write" in client("push", FIRST, name, "--onnx", "none").error
    assert client("push", FIRST, name, "--onnx", "none", "--force").exit_code == 0


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
        with pytest.raises(SubcompressError, match=f"config.json cannot hold {name}, which Net was made with: "):
            Net(**{name: value})._config()
    with pytest.raises(SubcompressError, match="cannot hold rest"):
        Net(3, None, 5)._config()
    with pytest.raises(SubcompressError, match="cannot hold width"):
        Configured(Settings(), 7)._config()


def test_a_token_is_never_shown(hub, client):
    code = """
from subcompress import SubcompressError
from subcompress.remote import Reference, transport
heard = []
mine = transport.Hub("hf_oauth_SECRETsecret.abc\\n", heard.append)
mine.log("Bearer hf_oauth_SECRETsecret.abc, hf_abcdefghijklmnopqrstuvwxyz")
said = str(transport._translate(ValueError("got hf_oauth_SECRETsecret.abc"), Reference("a/b"), mine.token))
try:
    transport.Hub("hf_a\\x00b")
except SubcompressError as e:
    said += str(e)
result = heard + [said]
"""
    found = client.python(code.replace("\\\\", "\\"))
    assert found[0] == "Bearer hf_..., hf_..."
    assert "SECRET" not in "".join(found) and "one line of printable characters" in found[1]


def test_something_else_under_our_names(hub, client, name, tmp_path):
    hub.make(name)
    hub.put(name, "theirs", model__safetensors=b"\x10" + bytes(7) + b'{"w":{"dtype":1}}' + bytes(40))
    line = client("push", FIRST, name, "--onnx", "none").error
    assert "holds a model.safetensors that subcompress did not write" in line and "--force" in line
    line = client("pull", name, "-o", tmp_path / "net.safetensors").error
    assert "holds something else under the name model.safetensors" in line
    assert not (tmp_path / "net.safetensors").exists()
    assert hub.count("GET", f"{name}/resolve/main/model.safetensors") == 1  # it came as it is: not fetched again
    push(client, FIRST, name, "--force")
    hub.put(name, "theirs again", model__safetensors=b"no file of ours")
    assert "subcompress did not write" in client("push", FIRST, name, "--onnx", "none").error
    hub.make(name + "2")
    hub.put(name + "2", "a transformer", config__json=b'{"model_type": "bert"}')
    assert "holds a config.json" in client("push", FIRST, name + "2", "--onnx", "none").error
    assert "holds no model.safetensors" in client("pull", name + "2", "-o", tmp_path / "x").error


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
    assert "does not permit this" in client("push", SECOND, name, "--onnx", "none").error
    assert "the token" not in client("pull", name, "-o", out).stdout
    assert "does not permit this" in client("push", SECOND, f"{name}-new", "--onnx", "none").error
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
    assert done.exit_code == 0 and f"{name} is now called {name}-new" in done.stderr
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
    assert "was asked for" in client("pull", name, "-o", tmp_path / "y", "--digest", digest).error
    assert not (tmp_path / "y").exists()
