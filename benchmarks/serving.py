"""Serving: ours beside MLServer and Triton, a cold model among a thousand, memory, many deltas on one base, and a soak.

    python benchmarks/serving.py [PART ...] [--mlserver PYTHON] [--triton PYTHON] [--model DIR] [-o benchmarks/results]

Parts: `peers` (requests a second and latencies, the servers in turn, one alive at a time), `cold` (the first request
to each of a thousand models), `many` (requests spread over them, little memory), `deltas` (files on one base, that of
--model, a folder of transformers), `grpc` (gRPC beside HTTP, one client), `soak` (valid and invalid requests of both
for minutes). Without PART, all of them. Each replaces its own section of serving.md. PYTHON is that of an environment
with mlserver, onnxruntime and uvloop<0.22 (with later ones its parallel workers do not start), or with nvidia-
pytriton, numpy<2 and onnxruntime. Coordinates are random, of four bits; no training. Answers are compared with
torch's. The load comes from another process (load.py, soak.py), over 127.0.0.1.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import load
import numpy as np
import torch
from servers import (
    MLServer,
    Ours,
    Server,
    Triton,
    all_seconds,
    free_port,
    memory,
    plain_repository,
    processor_seconds,
)

import subcompress
from subcompress import format
from subcompress.data import pretrained
from subcompress.data.mnist import FACTS
from subcompress.format.facts import Facts, Input
from subcompress.format.record import Coded, Group, Record
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.expand import digest_of, expand
from subcompress.tensors.layout import Layout
from subcompress_models import MODELS

MB = 10**6
MODEL_BEYOND = 150 * MB
"""Bytes that the server's process may take in addition to `--memory`."""
Lines = list[str]


def image() -> np.ndarray:
    """(1, 1, 28, 28) float32: one random example."""
    return np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)


Answers = dict[str, list[float]]
"""Name of a model -> its answer."""


def lenets(folder: Path, count: int) -> Answers:
    """`count` packed LeNets, each with a seed and coordinates of its own, and what torch makes of `image()`."""
    module, x, found = MODELS["lenet"](), torch.from_numpy(image()), {}
    layout = Layout.of(module.state_dict())
    D = sum(spec.size for spec in layout)
    for seed in range(count):
        z = np.random.default_rng(seed).normal(0, 2.5, 300).round().clip(-7, 7).astype(np.int32)
        group, entries = Group(HadamardBlocks.sized(D, 300, seed), 4, z), tuple(Coded(2.0**-6) for _ in layout)
        record = Record(seed, layout, (group,), entries, facts=FACTS)
        state = expand(record)
        format.save(Record(seed, layout, (group,), entries, facts=FACTS, digest=digest_of(record, state)),
                    folder / f"lenet-{seed}.safetensors")  # fmt: skip
        module.load_state_dict(state)
        with torch.no_grad():
            found[f"lenet-{seed}"] = module(x)[0].tolist()
    return found


def encoded(inputs: dict[str, np.ndarray], binary: bool, output: str = "output") -> dict[str, Any]:
    """An infer request as `tritonclient` makes it: {"body": base64, "headers": those that it needs}."""
    kinds, described = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}, []
    for name, x in inputs.items():
        one: dict[str, Any] = {"name": name, "shape": list(x.shape), "datatype": kinds[str(x.dtype)]}
        described.append(
            one | ({"parameters": {"binary_data_size": x.nbytes}} if binary else {"data": x.ravel().tolist()})
        )
    asked = [{"name": output, "parameters": {"binary_data": binary}}]
    head = json.dumps({"inputs": described, "outputs": asked}, separators=(",", ":")).encode()
    body = head + (b"".join(x.tobytes() for x in inputs.values()) if binary else b"")
    headers = {"Content-Type": "application/octet-stream" if binary else "application/json"}
    headers |= {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return {"body": base64.b64encode(body).decode(), "headers": headers}


def plan(server: Server, answers: Answers, binary: bool = True, **fields: Any) -> dict[str, Any]:
    """A plan for load.py: `image()` to each of these models."""
    made = encoded({"input": image()}, binary)
    asked = [
        {"path": server.infer.format(name), "headers": made["headers"], "body": 0, "expected": answer}
        for name, answer in answers.items()
    ]
    return {"port": server.port, "bodies": [made["body"]], "requests": asked, **fields}


def require(found: dict[str, Any]) -> dict[str, Any]:
    """The same. Raises RuntimeError where an answer was wrong, lost or not 200."""
    if set(found["answers"]) != {"200"} or found["wrong"] or found["lost"]:
        what = ", ".join(f"{n} x {status}" for status, n in found["answers"].items())
        raise RuntimeError(f"{what}; {found['wrong']} wrong, {found['lost']} lost: {found['said'][:160]}")
    return found


RUN = """
import statistics, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(numpy.float32)
times = []
for _ in range(4000):
    began = time.perf_counter()
    session.run(None, {"input": x})
    times.append(time.perf_counter() - began)
print(1000 * statistics.median(times[400:]))
"""

CELLS = [(clients, kind) for kind in ("JSON", "binary") for clients in (1, 16)]


def peers(options: argparse.Namespace, folder: Path) -> Lines:
    """LeNet, one example a request: the servers in turn, round after round."""
    packed, graph = folder / "lenet.safetensors", folder / "dense" / "lenet.onnx"
    answers = {"lenet": lenets(folder, 1)["lenet-0"]}
    (folder / "lenet-0.safetensors").rename(packed)
    graph.parent.mkdir()
    subcompress.unpack(packed, graph, MODELS["lenet"]())
    makers: dict[str, Callable[[Path], Server]] = {
        "**subcompress**": lambda f: Ours([packed], f, "--memory", "64MB", server=options.server),
        "**subcompress**, --workers 2": lambda f: Ours(
            [packed], f, "--memory", "64MB", "--workers", "2", server=options.server
        ),
    }
    if options.mlserver:
        for workers, batch in ((0, 0), (0, 16), (1, 0), (1, 16)):
            name = f"MLServer, parallel_workers={workers}, " + (f"max_batch_size={batch}" if batch else "no batching")
            makers[name] = lambda f, w=workers, b=batch: MLServer(options.mlserver, graph, f, w, b)  # type: ignore[misc]
    if options.triton:
        export = [sys.executable, "-m", "subcompress_cli", "export", str(packed), "--backend", "python"]
        exported = folder / "exported"
        subprocess.check_output([*export, "--triton-repo", str(exported)])
        makers["Triton, python backend, a plain model.py"] = lambda f: Triton(
            options.triton, plain_repository(graph, f), f
        )
        makers["Triton, python backend, `subcompress export`"] = lambda f: Triton(options.triton, exported, f)
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    failed: dict[tuple[str, int, str], str] = {}
    own: list[float] = []
    for turn in range(options.rounds):
        own.append(float(subprocess.check_output([sys.executable, "-c", RUN, str(graph)])))
        names = list(makers)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            place = folder / f"{turn}-{names.index(name)}"
            place.mkdir()
            try:
                with makers[name](place) as server:
                    for clients, kind in CELLS:
                        measure_cell(server, answers, (name, clients, kind), options, found, failed)
            except RuntimeError as e:
                failed |= {(name, *cell): str(e) for cell in CELLS if (name, *cell) not in found}
            print(f"round {turn + 1}: {name}", file=sys.stderr)
    return peers_tables(options, list(makers), found, failed, own)


def measure_cell(
    server: Server,
    answers: Answers,
    cell: tuple[str, int, str],
    options: argparse.Namespace,
    found: dict[tuple[str, int, str], list[dict[str, Any]]],
    failed: dict[tuple[str, int, str], str],
) -> None:
    """Load one cell of the tables, into `found`, or why it has no figure into `failed`."""
    _, clients, kind = cell
    asked = plan(server, answers, kind == "binary", clients=clients)
    try:
        require(load.carry_out(asked | {"clients": 1}))  # what the very first request takes belongs to no cell
        used, began = spent(server), time.perf_counter()
        result = require(load.carry_out(asked | {"warmup": 1.0, "seconds": options.seconds}))
    except RuntimeError as e:
        failed.setdefault(cell, str(e) if server.binary or kind == "JSON" else f"it reads JSON only ({e})")
        return
    took = time.perf_counter() - began
    its, generator, everything = (now - before for now, before in zip(spent(server), used, strict=True))
    rest = {"cpu": 1000 * its / result["all"], "others": max(0.0, everything - its - generator) / took}
    found.setdefault(cell, []).append(result | rest)


def spent(server: Server) -> tuple[float, float, float]:
    """Seconds of processors used so far: by the server, by generators that have ended, by everything."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return processor_seconds(server.process.pid), children.ru_utime + children.ru_stime, all_seconds()


def spread(values: list[float], digits: int) -> str:
    """The median, and the range in brackets where there are several."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})" if len(values) > 1 else middle


def peers_tables(
    options: argparse.Namespace,
    names: list[str],
    found: dict[tuple[str, int, str], list[dict[str, Any]]],
    failed: dict[tuple[str, int, str], str],
    own: list[float],
) -> Lines:
    """A table for each cell, and a summary of the figures."""
    x = encoded({"input": image()}, False)["body"], encoded({"input": image()}, True)["body"]
    sizes = [len(base64.b64decode(b)) for b in x]
    limits = {clients: load.ceiling(clients)["rate"] for clients in (1, 16)}
    others = [r["others"] for rows in found.values() for r in rows] or [math.nan]
    lines = [
        f"LeNet (44,426 weights), one example a request, FP32 [1, 1, 28, 28]: bodies of {sizes[0]:,} bytes (JSON) and "
        f"{sizes[1]:,} (binary). ONNX Runtime with one thread everywhere. {options.rounds} rounds, "
        f"{options.seconds:g} s a cell after a second of warm-up; medians of the rounds, and their range. "
        f"The generator's own limit is {limits[1]:,.0f} requests/s with 1 client and {limits[16]:,.0f} with 16. "
        f"CPU: what all processes of the server use of processors for a request. Meanwhile, what else runs on the "
        f"machine used {statistics.median(others):.2f} of its {os.cpu_count()} processors (at most {max(others):.2f}).",
        "",
    ]
    for clients, kind in CELLS:
        lines += [
            f"{kind}, {clients} client{'s' * (clients > 1)}:",
            "",
            "| server | requests/s | p50, ms | p99, ms | CPU, ms |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            cell = name, clients, kind
            if cell in found:
                rows = found[cell]
                rate, p50, p99 = (spread([r[k] for r in rows], n) for k, n in (("rate", 0), ("p50", 2), ("p99", 2)))
                cpu = statistics.median(r["cpu"] for r in rows)
                missed = f" ({len(rows)} rounds only)" if len(rows) < options.rounds else ""
                lines.append(f"| {name}{missed} | {rate} | {p50} | {p99} | {cpu:.2f} |")
            else:
                why = re.sub(r"[|\n]", " ", failed.get(cell, "not run"))
                lines.append(f"| {name} | none: {why} | | | |")
        lines.append("")
    return lines + verdicts(names, found, own)


def verdicts(names: list[str], found: dict[tuple[str, int, str], list[dict[str, Any]]], own: list[float]) -> Lines:
    """Ours against the best setting of each peer, cell by cell, and one client against ONNX Runtime by itself."""
    lines = [
        "| ours | against the best of | cell | requests/s, ours / theirs | p50 | p99 |",
        "|---|---|---|---|---|---|",
    ]
    for ours, peer in ((n, p) for p in ("MLServer", "Triton") for n in names if n.startswith("**subcompress")):
        for clients, kind in CELLS:
            theirs = [found[n, clients, kind] for n in names if n.startswith(peer) and (n, clients, kind) in found]
            if theirs and (ours, clients, kind) in found:
                of = {k: statistics.median(r[k] for r in found[ours, clients, kind]) for k in ("rate", "p50", "p99")}
                best = max(statistics.median(r["rate"] for r in row) for row in theirs)
                low = [min(statistics.median(r[k] for r in row) for row in theirs) for k in ("p50", "p99")]
                ahead = of["rate"] > best and of["p50"] < low[0] and of["p99"] < low[1]
                lines.append(
                    f"| {ours} | {peer} | {kind}, {clients} | {of['rate'] / best:.2f}"
                    f"{'' if ahead else ' (not ahead in all)'} | {of['p50'] / low[0]:.2f} | {of['p99'] / low[1]:.2f} |"
                )
    ours = names[0]
    limit = 2 * statistics.median(own) + 1
    for kind in ("JSON", "binary"):
        if rows := found.get((ours, 1, kind)):
            p50 = statistics.median(r["p50"] for r in rows)
            lines += [
                "",
                f"One client, {kind}: p50 {p50:.2f} ms; ONNX Runtime's own `run` takes {spread(own, 3)} ms, twice that "
                f"and 1 ms is {limit:.2f}: {held(p50 <= limit)}.",
            ]
    return lines


def held(is_so: bool) -> str:
    return "held" if is_so else "**MISSED**"


def cold(options: argparse.Namespace, folder: Path) -> Lines:
    """The first request to each of the models of a folder, the server just started."""
    answers = lenets(folder, options.models)
    lines = [
        f"A folder of {options.models:,} files (44,426 weights each, "
        f"{sum(f.stat().st_size for f in folder.iterdir()):,} bytes together), one client, binary, every answer "
        "checked:",
        "",
        "| --memory | started in, s | first request of all, ms | first requests: p50, p95, slowest, ms "
        "| the last 20 again: p50, ms | memory then, MB | p50 <= 30 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for kept in options.memory:
        with tempfile.TemporaryDirectory() as logs:
            with Ours([folder], Path(logs), "--memory", kept, server=options.server) as server:
                asked = plan(server, answers, clients=1, every=True, samples=True)
                order = random.Random(1).sample(range(len(answers)), len(answers))
                found = require(load.carry_out(asked | {"order": order}))
                again = require(load.carry_out(asked | {"order": order[-20:] * 5}))
                resident = memory(server.process.pid)
            times = sorted(ms for _, ms in found["samples"])
            p50 = statistics.median(times)
            lines.append(
                f"| {kept} | {server.started:.2f} | {found['samples'][0][1]:.1f} | {p50:.1f}; "
                f"{found['p95']:.1f}; {times[-1]:.1f} | {again['p50']:.2f} | {resident / MB:.0f} | {held(p50 <= 30)} |"
            )
    return lines


def bytes_of(text: str) -> int:
    """`64MB` -> 64 * 10^6: the unit by which the limits are checked."""
    number, unit = re.fullmatch(r"([\d.]+) ?([kKMG]?i?)B?", text).groups()  # type: ignore[union-attr]
    base = 1024 if unit.endswith("i") else 1000
    return int(float(number) * base ** ("kMG".index(unit[0].replace("K", "k")) + 1 if unit else 0))


def many(options: argparse.Namespace, folder: Path) -> Lines:
    """Requests spread at random over the models of a folder, with less memory than they would take."""
    answers = lenets(folder, options.models)
    lines = [
        f"A folder of {options.models:,} files, {options.requests:,} requests spread over them at random, 4 clients, "
        "binary, every answer checked:",
        "",
        "| --memory | highest memory of the process, MB | limit, MB (+ 150) | errors | requests/s | p50, p99, ms | "
        "| while starting, with the process that traces, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kept in options.memory:
        with tempfile.TemporaryDirectory() as logs:
            with Ours([folder], Path(logs), "--memory", kept, server=options.server) as server:
                order = random.Random(2).choices(range(len(answers)), k=options.requests)
                found = load.carry_out(plan(server, answers, clients=4, every=True, order=order))
                highest = memory(server.process.pid, "VmHWM")
            limit = bytes_of(kept) + MODEL_BEYOND
            errors = options.requests - found["answers"].get("200", 0) + found["wrong"]
            said = f": {found['said'][:80]}" if found["said"] else ""
            lines.append(
                f"| {kept} | {highest / MB:.0f} | {limit / MB:.0f} | {errors}{said} "
                f"| {found['rate']:,.0f} | {found['p50']:.2f}; {found['p99']:.1f} "
                f"| {held(highest <= limit and not errors)} | {server.starting / MB:.0f} |"
            )
    return lines


TOKENS = Facts(inputs=(Input("input_ids", "I64", (16,)), Input("attention_mask", "I64", (16,))))


def tokens() -> dict[str, np.ndarray]:
    """One text of 16 tokens."""
    return {"input_ids": np.arange(1000, 1016)[None], "attention_mask": np.ones((1, 16), np.int64)}


def delta_files(model: Path, folder: Path, count: int, asked: int) -> Answers:
    """`count` files on the base of a folder of transformers, acting on norms, biases and head; what the first `asked`
    of them make of `tokens()`."""
    torch.manual_seed(0)
    module = pretrained.load_model(model, labels=2).eval()
    subspace, x = (
        subcompress.Subspace.of(module, 1500, base=model),
        {k: torch.from_numpy(v) for k, v in tokens().items()},
    )
    found = {}
    for i in range(count):
        with torch.no_grad():
            subspace.z.normal_(std=0.1)
        subspace.round(4)
        subcompress.pack(subspace, folder / f"delta-{i}.safetensors", TOKENS)
    variants = subcompress.Variants(module, model)
    for name in [f"delta-{i}" for i in range(asked)]:
        variants.add(name, folder / f"{name}.safetensors")
        with torch.no_grad():
            found[name] = variants.use(name)(**x).logits[0].tolist()
    return found


def deltas(options: argparse.Namespace, folder: Path) -> Lines:
    """Files on one base: memory while requests are spread over some of them, and what it takes to switch."""
    if options.model is None:
        return ["Not run: no --model DIR, a folder of transformers."]
    answers = delta_files(options.model, folder, options.models, min(50, options.models))
    base = sum(f.stat().st_size for f in options.model.glob("*.safetensors"))
    kept, place = options.memory[0], str(options.model.resolve())
    made = encoded(tokens(), True, "logits")
    more = ["--memory", kept, "--model", f"hf:{place}", "--base", place]
    with tempfile.TemporaryDirectory() as logs, Ours([folder], Path(logs), *more, server=options.server) as server:
        requests = [
            {"path": server.infer.format(n), "headers": made["headers"], "body": 0, "expected": answer}
            for n, answer in answers.items()
        ]
        plain = {"port": server.port, "bodies": [made["body"]], "requests": requests, "samples": True, "every": True}
        n = len(requests)
        # Each is asked twice in a row: the first of two is a switch, the second is the same model again. The first
        # time round they are rebuilt, the others they are there.
        rounds = [i for turn in range(4) for i in random.Random(turn).sample(range(n), n)]
        found = require(load.carry_out(plain | {"clients": 1, "order": [i for i in rounds for _ in (0, 1)]}))
        order = random.Random(4).choices(range(n), k=options.requests // 20)
        mixed = require(load.carry_out(plain | {"clients": 4, "order": order}))
        highest, resident = memory(server.process.pid, "VmHWM"), memory(server.process.pid)
    times = [ms for _, ms in found["samples"]]
    pairs = list(zip(times[::2], times[1::2], strict=True))
    rebuilt, there, same = (sorted(t) for t in (times[2 : 2 * n : 2], times[2 * n :: 2], times[1::2]))
    extra = [statistics.median(a - b for a, b in some) for some in (pairs[1:n], pairs[n:])]
    limit = 2 * base + bytes_of(kept)
    return [
        f"{options.models:,} files ({sum(f.stat().st_size for f in folder.iterdir()):,} bytes together) on one base of "
        f"{base:,} bytes, requests (16 tokens, binary) spread over {n} of them, --memory {kept}, every answer checked:",
        "",
        "| what | p50, ms | p99, ms | limit | |",
        "|---|---|---|---|---|",
        f"| the first request of all | {times[0]:.1f} | | | |",
        f"| to the same model as the last request | {percentiles(same)} | | |",
        f"| to another one, for the first time | {percentiles(rebuilt)} | | |",
        f"| that is, to switch | {extra[0]:.1f} | | 100 | {held(extra[0] <= 100)} |",
        f"| to another one, asked before | {percentiles(there)} | | |",
        f"| that is, to switch | {extra[1]:.1f} | | 100 | {held(extra[1] <= 100)} |",
        f"| 4 clients, at random ({mixed['rate']:,.0f} requests/s) | {mixed['p50']:.1f} | {mixed['p99']:.1f} | | |",
        "",
        f"Started in {server.started:.1f} s (with the process that traces, {server.starting / MB:.0f} MB). Highest "
        f"memory of the server {highest / MB:.0f} MB (at the end {resident / MB:.0f}); 2 x base + --memory is "
        f"{limit / MB:.0f} MB: {held(highest <= limit)}.",
    ]


def percentiles(times: list[float]) -> str:
    """Two cells, of sorted times."""
    return f"{times[len(times) // 2]:.1f} | {times[len(times) * 99 // 100]:.1f}"


def soak(options: argparse.Namespace, folder: Path) -> Lines:
    """Minutes of valid and invalid requests: the answers by status, and the memory second by second."""
    answers = lenets(folder, 55)
    names = list(answers)
    changing = {name: (folder / f"{name}.safetensors").read_bytes() for name in names[50:]}
    made = {kind: encoded({"input": image()}, kind == "binary") for kind in ("JSON", "binary")}
    grpc_port = free_port()
    more = ["--memory", "8MB", "--max-body", "1MB", "--grpc-port", str(grpc_port)]
    with tempfile.TemporaryDirectory() as logs, Ours([folder], Path(logs), *more, server=options.server) as server:
        told = {
            "port": server.port, "grpc_port": grpc_port, "image": base64.b64encode(image().tobytes()).decode(),
            "clients": 16, "seconds": 60 * options.minutes, "valid": made, "max_body": MB,
            "models": {name: [answers[name]] for name in names[:50]},
            "changing": {name: [answers[other] for other in changing] for name in changing},
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("soak.py"))]
        began, samples = time.perf_counter(), []
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(told))
            process.stdin.close()
            while process.poll() is None and server.process.poll() is None:
                samples.append((time.perf_counter() - began, memory(server.process.pid)))
                change(folder, changing, len(samples))
                time.sleep(1)
            found = json.loads(process.stdout.read() or "{}")
        if server.process.poll() is not None or not found:
            raise RuntimeError(f"the server or its load ended after {samples[-1][0]:.0f} s: {server.last_line()}")
        restored = restore(server, folder, changing, answers)
        ready, log = server.get("/v2/health/ready")[0], server.log.stat().st_size
    after = f"{restored} Ready afterwards: {ready}. The server logged {log:,} bytes."
    return soak_table(options, found, samples, after)


CALLS = """
import statistics, sys, time
import numpy
from importlib import import_module

x = numpy.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(numpy.float32)
seconds, ports = float(sys.argv[3]), {"http": sys.argv[1], "grpc": sys.argv[2]}
times = {(protocol, call): [] for protocol in ports for call in ("infer", "live")}
clients = {}
for protocol, port in ports.items():
    module = import_module(f"tritonclient.{protocol}")
    clients[protocol] = module, module.InferenceServerClient(f"127.0.0.1:{port}")
for turn in range(8):
    for protocol, (module, client) in clients.items():
        ends = time.perf_counter() + seconds / 8
        while (began := time.perf_counter()) < ends:
            given = module.InferInput("input", x.shape, "FP32")
            given.set_data_from_numpy(x)
            client.infer("lenet", [given]).as_numpy("output")
            ended = time.perf_counter()
            client.is_server_live()
            if turn:
                times[protocol, "infer"].append(1000 * (ended - began))
                times[protocol, "live"].append(1000 * (time.perf_counter() - ended))
for each in times.values():
    found = sorted(each)
    print(found[len(found) // 2], found[len(found) * 99 // 100])
"""
"""One client of Triton's, both protocols in turn: medians and 99th percentiles in milliseconds."""


def grpc(options: argparse.Namespace, folder: Path) -> Lines:
    """One client of each protocol, LeNet, binary: Triton's own clients, in turn."""
    lenets(folder, 1)
    (folder / "lenet-0.safetensors").rename(packed := folder / "lenet.safetensors")
    grpc_port, rows = free_port(), []
    with Ours([packed], folder, "--grpc-port", str(grpc_port), server=options.server) as server:
        for _ in range(options.rounds):
            arguments = [str(server.port), str(grpc_port), str(4 * options.seconds)]
            said = subprocess.check_output([sys.executable, "-c", CALLS, *arguments], text=True)
            rows.append([[float(v) for v in line.split()] for line in said.splitlines()])
    lines = [
        f"LeNet, one example a request, binary, one client of tritonclient for each protocol, in turn; "
        f"{options.rounds} rounds of {4 * options.seconds:g} s, medians and their range:",
        "",
        "| protocol | p50, ms | p99, ms |",
        "|---|---|---|",
    ]
    for i, name in enumerate(("HTTP, inference", "HTTP, liveness check", "gRPC, inference", "gRPC, liveness check")):
        p50, p99 = (spread([row[i][k] for row in rows], 2) for k in (0, 1))
        lines.append(f"| {name} | {p50} | {p99} |")
    ratio, least = (statistics.median(row[i][0] / row[0][0] for row in rows) for i in (2, 3))
    return [
        *lines,
        "",
        f"p50 of an inference over gRPC is {ratio:.2f} times that over HTTP; at most 1.2: {held(ratio <= 1.2)}. A "
        f"liveness check over gRPC, which computes nothing, takes {least:.2f} times an inference over HTTP.",
    ]


def change(folder: Path, files: dict[str, bytes], turn: int) -> None:
    """Swap, spoil, cut short, delete or restore one of these files."""
    draw = random.Random(turn)
    name, other = draw.sample(list(files), 2)
    path, data = folder / f"{name}.safetensors", files[name]
    what = draw.choice(["swap", "swap", "spoil", "cut", "delete", "restore", "restore"])
    if what == "delete":
        path.unlink(missing_ok=True)
    elif what == "cut":
        path.write_bytes(data[: draw.randrange(len(data))])
    else:
        spoilt = bytes(b ^ (i == len(data) // 2) for i, b in enumerate(data))
        whole = folder / ".new"
        whole.write_bytes({"swap": files[other], "spoil": spoilt, "restore": data}[what])
        whole.replace(path)


def restore(server: Server, folder: Path, files: dict[str, bytes], answers: Answers) -> str:
    """Write the files as they were; how long it takes until each is answered as it was, if it is in 20 s."""
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    began = time.perf_counter()
    while (taken := time.perf_counter() - began) < 20:
        found = load.carry_out(plan(server, {name: answers[name] for name in files}, clients=1, every=True))
        if found["answers"] == {"200": len(files)} and not found["wrong"]:
            return f"Files that were spoilt and restored are answered again after {taken:.1f} s."
        time.sleep(0.2)
    return f"Files that were spoilt and restored are NOT answered again: {found['answers']}, {found['said'][:200]}."


def soak_table(
    options: argparse.Namespace, found: dict[str, Any], samples: list[tuple[float, int]], after: str
) -> Lines:
    """Counts by kind, and what the memory did after the first minute (or half of a run of less than two)."""
    settled = min(60.0, 30 * options.minutes)
    early = [b for t, b in samples if t >= settled][:5]
    late = [b for t, b in samples if t >= settled]
    before, top, last = statistics.median(early), max(late), statistics.median(late[-5:])
    answered = [(s, n) for row in found["kinds"].values() for s, n in row["answers"].items()]
    broken = sum(n for s, n in answered if (s[0] == "5" and s != "503") or s in ("INTERNAL", "UNKNOWN"))
    unexpected = sum(row["unexpected"] for row in found["kinds"].values())
    lines = [
        f"{options.minutes:g} minutes, 16 clients, HTTP and gRPC, {len(found['kinds'])} kinds of requests, 55 models, "
        "the files of 5 of them changed meanwhile, one a second; "
        f"--memory 8MB, --max-body 1MB; "
        f"{found['total']:,} requests, {found['total'] / found['seconds']:,.0f} a second; valid ones: p50 "
        f"{found['p50']:.1f}, p99 {found['p99']:.1f}, slowest {found['max']:.0f} ms.",
        "",
        "| request | answers | expected | others |",
        "|---|---|---|---|",
    ]
    for kind, row in found["kinds"].items():
        counts = ", ".join(f"{status}: {n:,}" for status, n in sorted(row["answers"].items()))
        said = f" ({row['said']})" if row["said"] else ""
        lines.append(f"| {kind} | {counts} | {' or '.join(row['expected'])} | {row['unexpected']}{said} |")
    within = abs(last - before) <= 0.1 * before and top <= 1.1 * before
    return [
        *lines,
        "",
        f"5xx other than 503, INTERNAL and UNKNOWN: {broken}: {held(not broken)}. Answers other than expected: "
        f"{unexpected}. Memory after {settled:.0f} s {before / MB:.0f} MB, at the end {last / MB:.0f} MB "
        f"({100 * (last / before - 1):+.1f} %), at "
        f"most {top / MB:.0f} MB in between: {held(within)}. {after}",
    ]


PARTS: dict[str, Callable[[argparse.Namespace, Path], Lines]] = {
    "peers": peers, "cold": cold, "many": many, "deltas": deltas, "grpc": grpc,
    "soak": soak,
}  # fmt: skip


def machine(options: argparse.Namespace, part: str) -> str:
    """The line above a section: when, on what, with which versions, by which command."""
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = [f"ONNX Runtime {(version_of('onnxruntime-gpu') or version_of('onnxruntime'))}"]
    versions += [f"{n} {v}" for n in ("starlette", "uvicorn", "grpcio") if (v := version_of(n))]
    for python, package in ((options.mlserver, "mlserver"), (options.triton, "nvidia-pytriton")):
        if python and part == "peers":
            for n in (package, "onnxruntime", *(["uvloop"] if package == "mlserver" else [])):
                found = f"from importlib.metadata import version; print(version({n!r}))"
                versions.append(f"{n} {subprocess.check_output([python, '-c', found], text=True).strip()}")
    uses = {"peers": ("mlserver", "triton", "rounds", "seconds"), "cold": ("models", "memory"),
            "many": ("models", "requests", "memory"), "deltas": ("model", "models", "requests", "memory"),
            "grpc": ("rounds", "seconds"), "soak": ("minutes",)}[part]  # fmt: skip
    command = " ".join(
        [f"python benchmarks/serving.py {part}", *(f"--{k} {v}" for k, v in options.shown.items() if k in uses)]
    )
    return (
        f"{time.strftime('%Y-%m-%d')}, {name[1] if name else platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(versions)}: `{command}`"
    )


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def merged(text: str, part: str, section: str) -> str:
    """The report with one section replaced, in the order of the parts."""
    found = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)) | {part: f"\n{section}\n\n"}
    body = "".join(f"## {name}\n{found[name]}" for name in PARTS if name in found)
    return f"# Serving\n\n{body}".rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--rounds", type=int, default=3, help="of peers")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load a cell, in peers")
    parser.add_argument("--mlserver", type=Path, metavar="PYTHON")
    parser.add_argument("--triton", type=Path, metavar="PYTHON")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the base of deltas, a folder of transformers")
    parser.add_argument("--models", type=int, default=1000, help="files in a folder")
    parser.add_argument("--requests", type=int, default=10_000, help="of many; deltas takes a fiftieth")
    parser.add_argument("--memory", nargs="+", default=["64MB", "16MB"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak")
    parser.add_argument("--server", metavar="COMMAND", help="in place of `python -m subcompress_cli serve`")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    hidden = {"mlserver": "PYTHON", "triton": "PYTHON", "model": "DIR"}
    options.shown = {
        name: hidden.get(name) or (" ".join(value) if isinstance(value, list) else str(value))
        for name, value in vars(options).items()
        if name not in ("parts", "output", "server") and value != parser.get_default(name)
    }
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            lines = [machine(options, part), "", *PARTS[part](options, Path(folder))]
        section = "\n".join(lines)
        print(f"## {part}\n\n{section}\n", flush=True)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            report = options.output / "serving.md"
            report.write_text(merged(report.read_text() if report.exists() else "", part, section))


if __name__ == "__main__":
    main()
