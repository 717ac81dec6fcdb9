"""Models that come and go: memory, files that change, sources, what cannot be read, and what is traced when."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from records import lenet_record, record_of
from served import LENET, X, expected, graph
from serving import Client, packed, serving, traced_here

import subcompress
from subcompress import SubcompressError
from subcompress.format.facts import Facts
from subcompress.onnx.graph_cache import Traced
from subcompress.serving import catalog, running
from subcompress.serving import networks as serving_networks
from subcompress.serving.models import Models
from subcompress.serving.networks import Job
from subcompress.serving.running import serve
from subcompress.serving.trial import Trials
from subcompress_cli import finding, tracing
from subcompress_models import MODELS


def test_the_most_recently_used_stay_within_memory(tmp_path: Path) -> None:
    for i in range(12):
        packed(tmp_path, f"n{i}", lenet_record(300, i))
    with serving(tmp_path, trace=LENET, memory=2_500_000) as client:
        order = [*range(12), 3, 11, 3, 0]
        for i in order:
            found = client.infer(f"n{i}", X[:1])
            assert found.status == 200
            wanted = expected(tmp_path / f"n{i}.safetensors", X[:1])
            np.testing.assert_allclose(found.said["outputs"][0]["data"], wanted[0], atol=1e-4)
            status = client("GET", "/status?limit=100").said
            assert status["memory"]["models"] <= 2_500_000
        kept = {m["name"] for m in status["models"] if m["state"] == "loaded"}
        assert 1 < len(kept) < 12 and {"n0", "n3", "n11"} <= kept
        with ThreadPoolExecutor(12) as pool:  # more at once than fit
            statuses = list(pool.map(lambda i: client.infer(f"n{i % 12}", X[:1]).status, range(60)))
        assert statuses == [200] * 60
    with serving(tmp_path, trace=LENET, memory=100_000) as client:
        found = client.infer("n0", X)
        assert found.status == 503 and "--memory is 100000" in found.error


def test_a_network_is_traced_once(folder: Path) -> None:
    trace = traced_here(MODELS["lenet"]())
    with serving(folder, trace=trace) as client:
        for name in ("one", "two", "one"):
            assert client.infer(name, X).status == 200
    assert len(trace.jobs) == 1  # type: ignore[attr-defined]


def test_files_that_change_while_they_are_served(tmp_path: Path) -> None:
    path = packed(tmp_path, "net", lenet_record(300, 1))
    packed(tmp_path, "other", lenet_record(300, 5))
    with serving(tmp_path, trace=LENET) as client:

        def served() -> Any:
            client("POST", "/v2/repository/index")  # looks at the files
            assert client.infer("other", X).status == 200
            return client.infer("net", X[:1])

        def reason() -> str:
            return next(m["reason"] for m in client("GET", "/v2/repository/index").said if m["name"] == "net")

        first = served().said["outputs"][0]["data"]
        packed(tmp_path, "net", lenet_record(300, 2))  # another in its place
        second = served().said["outputs"][0]["data"]
        assert not np.allclose(first, second)
        np.testing.assert_allclose(second, expected(path, X[:1])[0], atol=1e-4)

        whole = path.read_bytes()
        path.write_bytes(whole[:100])  # cut off
        assert served().said["outputs"][0]["data"] == second
        assert "still served" in reason() and any("still served" in line for line in client.said)
        found = client("POST", "/v2/repository/models/net/load")
        assert found.status == 503 and "was not loaded" in found.error
        packed(tmp_path, "net", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))  # of a network not known
        assert served().said["outputs"][0]["data"] == second and "does not show which network it is" in reason()
        path.write_bytes(whole)  # whole again
        assert served().said["outputs"][0]["data"] == second and reason() == ""

        path.unlink()
        found = served()
        assert found.status == 404 and "there is no model 'net'" in found.error
        packed(tmp_path, "new", lenet_record(300, 3))  # comes later
        served()
        assert client.infer("new", X).status == 200
        (tmp_path / "bad.safetensors").write_bytes(b"<html>")
        served()
        found = client.infer("bad", X)
        assert found.status == 503 and "cannot be served" in found.error
        states = {m["name"]: m["state"] for m in client("GET", "/v2/repository/index").said}
        assert states == {"bad": "UNAVAILABLE", "new": "READY", "other": "READY"}


def test_what_was_counted_of_a_model_goes_with_it(tmp_path: Path) -> None:
    path = packed(tmp_path, "net", lenet_record())
    with serving(tmp_path, trace=LENET) as client:
        for served in (True, False, True):
            assert (client.infer("net", X).status == 200) == served
            assert (b'model="net"' in client("GET", "/metrics").body) == served
            assert client.infer("none", X).status == 404
            assert b'code="404",model=""' in client("GET", "/metrics").body
            path.unlink() if served else packed(tmp_path, "net", lenet_record())
            client("GET", "/v2/repository/index")


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        packed(tmp_path / folder, folder, lenet_record())
    with serving(tmp_path / "a", tmp_path / "b", trace=LENET) as client:
        (tmp_path / "a").rename(tmp_path / "elsewhere")
        packed(tmp_path / "b", "new", lenet_record())
        for _ in range(2):
            assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"a", "b", "new"}
        assert sum("no such file" in line for line in client.said) == 1
        assert [client.infer(name, X).status for name in ("a", "b", "new")] == [200] * 3
        (tmp_path / "a").mkdir()
        assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"b", "new"}
        (tmp_path / "a").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "a")
        assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"a", "b", "new"}
        assert client.infer("a", X).status == 200


def test_what_is_no_file_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_FILE_BYTES", 10_000)
    packed(tmp_path, "net", lenet_record())
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "pipe2.onnx")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "empty.onnx").touch()
    with (tmp_path / "huge.safetensors").open("wb") as f:
        f.truncate(1 << 34)
    (tmp_path / os.fsdecode(b"a\xff.safetensors")).touch()
    (tmp_path / "two\nlines.onnx").touch()
    with serving(tmp_path, trace=LENET) as client:
        reasons = {m["name"]: m["reason"] for m in client("GET", "/v2/repository/index").said}
        assert client.infer("net", X).status == client("GET", "/status").status == 200
        refused = client.infer("empty", X)
    assert refused.status == 503 and "is empty" in refused.error
    assert reasons.pop("net") == ""
    wanted = {
        "pipe": "is not a regular file: remove it",
        "pipe2": "is not a regular file: remove it",
        "folder": "is not a regular file: remove it",
        "empty": "is empty",
        "huge": "is it the dense model?",
        "a\\udcff": "must be letters",
        "two lines": "must be letters",
    }
    assert reasons.keys() == wanted.keys()
    assert all(text in reasons[name] and "\n" not in reasons[name] for name, text in wanted.items())


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, "net", lenet_record())

    def failing(path: Path, limit: int) -> bytes:
        raise SubcompressError(f"{path} cannot be read: Too many open files") from OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "read_bytes", failing)
        with serving(tmp_path, trace=LENET) as client:
            assert "Too many open files" in client.infer("net", X).error
            client("GET", "/v2/repository/index")
            assert sum("Too many open files" in line for line in client.said) == 1
            patch.undo()
            client("GET", "/v2/repository/index")
            assert client.infer("net", X).status == 200


def test_a_file_at_which_the_reader_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("bad", "good")):
        packed(tmp_path, name, lenet_record(300, i))
    parse = subcompress.format.parse

    def failing(data: bytes) -> Any:
        if data == (tmp_path / "bad.safetensors").read_bytes():
            raise KeyError("bug")
        return parse(data)

    monkeypatch.setattr(subcompress.format, "parse", failing)
    with serving(tmp_path, trace=LENET) as client:
        assert "cannot be read (KeyError: 'bug')" in client.infer("bad", X).error
        assert client.infer("good", X).status == 200


def test_a_model_that_is_unloaded_while_it_loads_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path, "net", lenet_record())
    began, go = threading.Event(), threading.Event()
    build = Models._build

    def slow(self: Models, content: Any) -> Any:
        began.set()
        assert go.wait(30)
        return build(self, content)

    monkeypatch.setattr(Models, "_build", slow)
    with serving(tmp_path, trace=LENET) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer, "net", X)
        assert began.wait(30)
        assert client("POST", "/v2/repository/models/net/unload").status == 200
        go.set()
        assert (found := asked.result()).status == 503 and "was unloaded" in found.error
        (row,) = (status := client("GET", "/status").said)["models"]
        assert (row["state"], row["memory"], status["memory"]["models"]) == ("unloaded", 0, 0)
        assert client("POST", "/v2/repository/models/net/load").status == 200
        assert client.infer("net", X).status == 200


def test_memory_is_let_go_of_without_another_model(client: Client) -> None:
    assert client.infer("two", X).status == 200
    held = weakref.ref(client.running.models.find("two").engine)
    assert client("POST", "/v2/repository/models/two/unload").status == 200
    client("GET", "/v2/repository/index")  # the loader's thread is through with what came before
    assert held() is None
    assert client("POST", "/v2/repository/models/two/load").status == 200


def test_what_no_file_needs_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_networks, "UNUSED", 1)
    modules = [torch.nn.Linear(3, n) for n in range(1, 4)]
    trace = traced_here(*modules)
    (tmp_path / "kept.safetensors").touch()
    with serving(tmp_path, trace=trace) as client:
        for module in (*modules, modules[-1]):
            path = packed(tmp_path, "net", record_of(module, Facts(input_shape=(3,))))
            client("GET", "/v2/repository/index")
            assert client.infer("net", np.zeros((1, 3), np.float32)).status == 200
            path.unlink()
            client("GET", "/v2/repository/index")
            assert len(client.running.models.networks._traced) <= 2
    assert len(trace.jobs) == 3  # type: ignore[attr-defined]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        packed(tmp_path / folder, "net", lenet_record())
    packed(tmp_path / "a", "other", lenet_record())
    with serving(tmp_path / "a", tmp_path / "b", f"mine={tmp_path}/b/net.safetensors", trace=LENET) as client:
        found = client.infer("net", X)
        assert found.status == 503 and "two files are called net" in found.error and "rename one" in found.error
        assert any("two files are called net" in line for line in client.said)
        assert client.infer("other", X).status == client.infer("mine", X).status == 200
        assert client.infer("net", X).status == 503


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("nowhere", "no such file: nowhere"),
        ("x=nowhere.safetensors", "no such file: nowhere.safetensors"),
        ("net.txt", "serve takes a .safetensors or .onnx file"),
        ("../x=net.txt", "the name of a model must be letters"),
        ("name=.", "only a file can have a name"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, rule: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.txt").touch()
    with pytest.raises(SubcompressError, match=rule), serving(source, trace=LENET):
        pass


def test_a_network_that_nobody_knows_is_said(tmp_path: Path) -> None:
    packed(tmp_path, "odd", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))
    packed(tmp_path, "lenet", lenet_record())
    with serving(tmp_path, trace=LENET) as client:
        found = client.infer("odd", X)
        assert found.status == 503 and "does not show which network it is" in found.error
        assert client.infer("lenet", X).status == 200


def test_a_server_is_ready_when_the_models_of_its_start_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_run, same = threading.Event(), [helper.make_node("Identity", ["x"], ["y"])]
    monkeypatch.setattr(Trials, "__call__", lambda self, paths: [""] * len(paths) if may_run.wait(30) else [])
    monkeypatch.setattr(running, "REFRESH_SECONDS", 0.02)
    graph(tmp_path / "one.onnx", same, {"x": ["n", 2], "y": ["n", 2]})
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with serving(tmp_path, trace=LENET) as client:
        try:
            assert [client("GET", f"/v2/health/{which}").status for which in ("live", "ready")] == [200, 503]
            assert client.infer("one", np.ones((1, 2), np.float32), name="x").status == 200  # it answers nevertheless
            may_run.set()
            client.wait_until_ready()
            may_run.clear()
            graph(tmp_path / "two.onnx", same, {"x": ["n", 2], "y": ["n", 2]})
            while not any(model.is_untried for model in client.running.models):
                time.sleep(0.001)
            assert client("GET", "/v2/health/ready").status == 200
        finally:
            may_run.set()


def test_a_trace_that_ends_its_process_or_hangs_leaves_the_others(child: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PATIENCE", 1)
    said: list[str] = []
    trace = tracing.subprocess_tracer((), said.append)
    found = trace([Job(name, b"") for name in ("a", "dies", "hangs", "b")])
    assert [f.graph if isinstance(f, Traced) else f[:34] for f in found] == [
        b"a",
        "its network could not be traced: t",
        "its network could not be traced: t",
        b"b",
    ]
    assert sum(isinstance(f, str) and "ended, or took longer than 1 seconds" in f for f in found) == 2


def test_a_server_that_ends_does_not_wait_for_a_trace(child: None, tmp_path: Path) -> None:
    packed(tmp_path, "a", lenet_record())
    trace = tracing.subprocess_tracer((), lambda line: None)
    with serving(tmp_path, trace=trace):
        packed(tmp_path, "hangs", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))
        while trace._child is None or trace._child.poll() is not None:
            time.sleep(0.001)


def test_a_factory_that_raises_leaves_the_networks_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def make():\n    raise ValueError('no luck')\n")
    network = next(finding.networks_of(lenet_record().layout, [f"{tmp_path}/own.py:make"], "net"))
    assert network.name == "lenet" and type(network.module) is type(MODELS["lenet"]())
    with pytest.raises(SubcompressError, match="no luck"):
        next(finding.networks_of(record_of(torch.nn.Linear(3, 2), Facts()).layout, [f"{tmp_path}/own.py:make"], "net"))


@pytest.mark.slow
def test_a_signal_while_it_starts_ends_it(child: None, tmp_path: Path) -> None:
    packed(tmp_path, "hangs", lenet_record())
    trace = tracing.subprocess_tracer((), lambda line: None)

    def signalled() -> None:
        while trace._child is None:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(signalled)
        serve([str(tmp_path)], trace, port=0, log=print, ready=lambda running: pytest.fail("it was ended before"))
        sent.result()
