"""A hundred fine-tunes of one base, ours and others': bytes, the first answer, switching, memory.

    python benchmarks/variants.py --peers --model DIR [--variants 100] [-o benchmarks/results]

DIR holds an encoder of transformers, which becomes a classifier of two labels. Ours act on norms, biases and head, with
d = 1,500 coordinates of 4 bits; LoRA has rank 8 on queries and values, and the head. Nothing is trained: neither bytes
nor times depend on what the numbers mean. Each way runs in a process of its own, on one thread, and answers one text of
16 tokens. First answer: from the imports on, the base opened. A new variant: its file opened, and its first answer.
Back: from one variant in use before to another, and its answer. Memory: anonymous, added since the imports, all
variants held; what is mapped from files is not in it, and is the same for all processes that map them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BACK = 60
"""Switches between variants in use before."""

TOKENS = 16

Ask = Callable[[int], np.ndarray]


def text(kind: Any = np.asarray) -> dict[str, Any]:
    """One text of 16 tokens, the same for all."""
    ids = np.random.default_rng(0).integers(1000, 20000, (1, TOKENS))
    return {"input_ids": kind(ids), "attention_mask": kind(np.ones_like(ids))}


# --- the files ---


def write_ours(base: Path, folder: Path, variants: int) -> None:
    """Write packed files, and a graph beside the base for each."""
    import torch

    import subcompress
    from subcompress.data import pretrained
    from subcompress.format.facts import Facts, Input

    torch.manual_seed(0)
    module = pretrained.load_model(base, labels=2)
    facts = Facts(inputs=tuple(Input(n, "I64", (0,)) for n in text()))
    (folder / "packed").mkdir()
    subspace = subcompress.Subspace.of(module, 1500, base=base)
    paths = []
    for i in range(variants):
        with torch.no_grad():
            subspace.z.normal_(std=0.1)
        subspace.round(4)
        paths.append(folder / "packed" / f"{i}.safetensors")
        subcompress.pack(subspace, paths[-1], facts)
    began = time.perf_counter()
    network = pretrained.load_model(base, labels=2).eval()
    for path in paths:
        subcompress.unpack(path, folder / "graphs", network, base=base, self_unfolding=True)
    print(f"{variants} graphs written in {time.perf_counter() - began:.0f} s", file=sys.stderr)


def write_lora(base: Path, folder: Path, variants: int) -> None:
    """PEFT's adapters, and the same as .onnx_adapter beside a graph of the base."""
    import onnx
    import onnxruntime
    import torch
    from onnx import helper

    from subcompress.format.facts import Facts, Input
    from subcompress.onnx.tracing import graph_of

    model = lora_on(base)
    facts = Facts(inputs=tuple(Input(n, "I64", (0,)) for n in text()))
    graph = graph_of(model, facts)
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for tensor in graph.graph.initializer:
        if tensor.name in moving:  # an input with a default: what an adapter replaces
            graph.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    missing = moving.keys() - {i.name for i in graph.graph.input}
    assert not missing, missing
    (folder / "adapters").mkdir()
    onnx.save(graph, folder / "adapters" / "base.onnx", save_as_external_data=True, location="base.data")
    for i in range(variants):
        with torch.no_grad():
            for name, p in moving.items():
                if "lora_B" in name:
                    p.normal_(std=0.02)
        model.save_pretrained(folder / "peft" / str(i))
        adapter = onnxruntime.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(p.detach().numpy()) for n, p in moving.items()}
        adapter.set_parameters(values)
        adapter.export_adapter(str(folder / "adapters" / f"{i}.onnx_adapter"))


def lora_on(base: Path) -> Any:
    """The network with LoRA of rank 8 on queries and values."""
    import torch
    from peft import LoraConfig, get_peft_model

    from subcompress.data import pretrained

    torch.manual_seed(0)
    plain = pretrained.load_model(base, labels=2)
    return get_peft_model(plain, LoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS")).eval()


# --- the ways, each in a process of its own ---


def graphs(base: Path, folder: Path, prepack: bool) -> Callable[[], Ask]:
    """A session of ONNX Runtime for each variant."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    held: dict[int, Any] = {}

    def ask(i: int) -> np.ndarray:
        if i not in held:
            held[i] = onnxruntime.InferenceSession(folder / "graphs" / f"{i}.onnx", options)
        return held[i].run(None, text())[0]

    return lambda: ask


def variants_in_torch(base: Path, folder: Path) -> Callable[[], Ask]:
    """`subcompress.Variants`: one module, which becomes one variant at a time."""
    import torch

    import subcompress
    from subcompress.data import pretrained

    def start() -> Ask:
        held = subcompress.Variants(pretrained.load_model(base, labels=2), base)

        def ask(i: int) -> np.ndarray:
            if str(i) not in held:
                held.add(str(i), folder / "packed" / f"{i}.safetensors")
            with torch.no_grad():
                return held.use(str(i))(**text(torch.as_tensor)).logits.numpy()

        return ask

    return start


def adapters(base: Path, folder: Path) -> Callable[[], Ask]:
    """ONNX Runtime's own adapters, on one session."""
    import onnxruntime

    def start() -> Ask:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "adapters" / "base.onnx", options)
        held: dict[int, Any] = {}

        def ask(i: int) -> np.ndarray:
            if i not in held:
                held[i] = onnxruntime.LoraAdapter()
                held[i].Load(str(folder / "adapters" / f"{i}.onnx_adapter"))
            run = onnxruntime.RunOptions()
            run.add_active_adapter(held[i])
            return session.run(None, text(), run)[0]

        return ask

    return start


def peft(base: Path, folder: Path) -> Callable[[], Ask]:
    """PEFT: adapters loaded side by side, one of them set."""
    import torch
    from peft import PeftModel

    from subcompress.data import pretrained

    def start() -> Ask:
        plain = pretrained.load_model(base, labels=2)
        model = PeftModel.from_pretrained(plain, folder / "peft" / "0", adapter_name="v0").eval()
        held = {0}

        def ask(i: int) -> np.ndarray:
            if i not in held:
                model.load_adapter(folder / "peft" / str(i), adapter_name=f"v{i}")
                held.add(i)
            model.set_adapter(f"v{i}")
            model.eval()
            with torch.no_grad():
                return model(**text(torch.as_tensor)).logits.numpy()

        return ask

    return start


WAYS: dict[str, tuple[str, Callable[[Path, Path], Callable[[], Ask]], tuple[str, ...]]] = {
    "graphs": (
        "ours, graphs beside the base, a session each",
        lambda b, f: graphs(b, f, True),
        ("graphs/*.onnx",),
    ),
    "shared": (
        "the same, `session.disable_prepacking`",
        lambda b, f: graphs(b, f, False),
        ("graphs/*.onnx",),
    ),
    "variants": ("ours, `Variants` in torch", variants_in_torch, ("packed/*",)),
    "adapters": ("ONNX Runtime, `.onnx_adapter` of LoRA", adapters, ("adapters/*.onnx_adapter", "adapters/base.onnx")),
    "peft": ("PEFT, `set_adapter` of LoRA", peft, ("peft/*/adapter_model.safetensors", "peft/*/adapter_config.json")),
}
"""What it is called in the table, what makes it, and its files beyond the base."""


def anonymous() -> int:
    """Bytes of this process's memory that are mapped from no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status: run it on Linux")


def timed(ask: Ask, i: int) -> float:
    """Milliseconds to an answer."""
    began = time.perf_counter()
    ask(i)
    return 1000 * (time.perf_counter() - began)


def child(way: str, base: Path, folder: Path, variants: int) -> dict[str, float]:
    """The figures of one way."""
    import ctypes

    start = WAYS[way][1](base, folder)
    before = anonymous()
    began = time.perf_counter()
    ask = start()
    ask(0)
    first = 1000 * (time.perf_counter() - began)
    new = [timed(ask, i) for i in range(1, variants)]
    drawn = np.random.default_rng(1).permutation(np.tile(np.arange(variants), 1 + BACK // variants))[:BACK]
    back = [timed(ask, int(i)) for i in drawn]
    again = [timed(ask, int(drawn[-1])) for _ in range(20)]
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {
        "first": first,
        "new": statistics.median(new),
        "back": statistics.median(back),
        "again": statistics.median(again),
        "memory": anonymous() - before,
    }


def table(base: Path, variants: int) -> list[str]:
    """The rows of the table."""
    rows = [
        f"| {variants} variants | bytes beyond the base | first answer, ms | a new variant, ms | back to one, ms "
        "| the same again, ms | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        write_ours(base, folder, variants)
        write_lora(base, folder, variants)
        for way, (name, _, patterns) in WAYS.items():
            size = sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))
            command = [sys.executable, __file__, way, str(base), where, str(variants)]
            found = json.loads(subprocess.check_output(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
            rows.append(
                f"| {name} | {size:,} | {found['first']:.0f} | {found['new']:.1f} | {found['back']:.1f} "
                f"| {found['again']:.1f} | {found['memory'] / 2**20:,.0f} |"
            )
            print(rows[-1], file=sys.stderr)
        rows += ["", one_of_each(folder)]
    return rows


def one_of_each(folder: Path) -> str:
    """The bytes of one variant in each form."""
    packed = (folder / "packed" / "0.safetensors").stat().st_size
    graph = (folder / "graphs" / "0.onnx").stat().st_size
    adapter = (folder / "adapters" / "0.onnx_adapter").stat().st_size
    lora = (folder / "peft" / "0" / "adapter_model.safetensors").stat().st_size
    base = (folder / "graphs" / "model.safetensors").stat().st_size
    return (
        f"One variant: {packed:,} bytes packed, {graph:,} as a graph, {adapter:,} as an `.onnx_adapter`, {lora:,} as "
        f"PEFT's `adapter_model.safetensors`. The base is {base:,}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One way, in a process of its own.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("base", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", type=int)
    given = parser.parse_args()
    print(json.dumps(child(given.way, given.base, given.folder, given.variants)))
