"""A line and a Hub with faults; without a Hub, without room, without patience."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
import torch
from hub_client import Client
from on_hub import FIRST, SECOND, pack_on, push

import subcompress
from subcompress_models import MODELS

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
    assert "was damaged twice" in done.error
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
    assert "the Hub answers 503, a fault of its own" in done.error
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
    assert "your token does not permit this" in client("push", FIRST, name, "--onnx", "none").error


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
    assert "was damaged on the way; fetching it once more" in done.stderr
    assert (tmp_path / "y").read_bytes() == FIRST.read_bytes()


def test_a_full_disk(hub, client, name, tmp_path):
    """The kernel refuses every byte after the first hundred: in the cache first, then where the file is to be."""
    push(client, SECOND, name)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY)); result = None"
    client.python(limit.format(1_000))
    try:
        line = client("pull", name, "-o", tmp_path / "x").error
        assert "the cache of downloads cannot be written: File too large; free space" in line
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
        "interrupted: nothing was published, unless it had just ended; it is safe to run the same command again\n"
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
