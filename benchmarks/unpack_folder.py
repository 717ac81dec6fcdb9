"""Memory and rate of `unpack --format transformers` for a fine-tune of a network of 1.1 billion weights.

    python benchmarks/unpack_folder.py [--layers 22] [--folder DIR]

It makes a Llama of random weights in bfloat16 in five shards, tensor by tensor; packs a fine-tune of its norms, made by
hand; and unpacks that to a folder, in a process of its own. It prints the most memory of that process beyond the pages
of the base that are mapped, and the bytes that are rebuilt, checked and written a second, beside those of `dd`; reading
the base once for its digest and importing transformers come before. All files are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from subcompress import format
from subcompress.base import BaseReference, OnBase, open_base
from subcompress.format.record import Coded, Group, Record, Unchanged
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.dense import header
from subcompress.rebuild.streaming import stream
from subcompress.tensors.layout import Layout, TensorSpec

SHARDS = 5
COORDINATES = 300
PIECE = 1 << 22
"""Values that are drawn at a time."""

EVERY = 0.2
"""Seconds between two looks at the memory: each holds the process up for a moment."""


def config(layers: int) -> dict[str, object]:
    """The configuration of the network: TinyLlama's sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": 32_000,
        "hidden_size": 2_048,
        "intermediate_size": 5_632,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }


def tensors(layers: int) -> Iterator[TensorSpec]:
    """The tensors of the network."""

    def spec(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, "BF16", shape)

    yield spec("model.embed_tokens.weight", 32_000, 2_048)
    for i in range(layers):
        own = f"model.layers.{i}"
        for name, rows in {"q": 2_048, "k": 256, "v": 256, "o": 2_048}.items():
            yield spec(f"{own}.self_attn.{name}_proj.weight", rows, 2_048)
        yield spec(f"{own}.mlp.gate_proj.weight", 5_632, 2_048)
        yield spec(f"{own}.mlp.up_proj.weight", 5_632, 2_048)
        yield spec(f"{own}.mlp.down_proj.weight", 2_048, 5_632)
        yield spec(f"{own}.input_layernorm.weight", 2_048)
        yield spec(f"{own}.post_attention_layernorm.weight", 2_048)
    yield spec("model.norm.weight", 2_048)
    yield spec("lm_head.weight", 32_000, 2_048)


def make_base(folder: Path, layers: int) -> int:
    """Write the network and return its number of weights."""
    folder.mkdir()
    specs = list(tensors(layers))
    total = sum(s.size for s in specs)
    shards: list[list[TensorSpec]] = [[] for _ in range(SHARDS)]
    used = 0
    for spec in specs:
        shards[min(SHARDS - 1, used * SHARDS // total)].append(spec)
        used += spec.size
    names = [f"model-{i:05}-of-{SHARDS:05}.safetensors" for i in range(1, SHARDS + 1)]
    drawn = np.random.default_rng(0)
    for name, own in zip(names, shards, strict=True):
        layout = Layout(tuple(sorted(own, key=lambda s: s.name)))
        with (folder / name).open("wb") as f:
            f.write(header(layout)[0])
            for spec in layout:
                for at in range(0, spec.size, PIECE):
                    values = drawn.standard_normal(min(PIECE, spec.size - at), np.float32) * np.float32(0.02)
                    f.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    where = {spec.name: name for name, own in zip(names, shards, strict=True) for spec in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config(layers)))
    return total


def pack_tune(folder: Path, file: Path) -> int:
    """Pack a fine-tune of all norms and return the bytes of the file."""
    base = open_base(folder)
    standing = OnBase(BaseReference(base.name, "", base.digest, len(base.layout)), base)
    layout = standing.layout
    entries = tuple(Coded(2.0**-9, based=True) if "norm" in spec.name else Unchanged() for spec in layout)
    D = sum(spec.reals for spec in layout if "norm" in spec.name)
    z = np.random.default_rng(1).integers(-7, 8, COORDINATES).astype(np.int32)
    group = Group(HadamardBlocks.sized(D, COORDINATES, 1), 4, z)
    record = Record(1, layout, (group,), entries, base=standing)
    return format.save(Record(1, layout, (group,), entries, digest=stream(record), base=standing), file)


def resident(pid: int, folder: Path) -> tuple[int, int]:
    """Bytes of a process that are resident, without and with the pages of the files in a folder; zeros once it has
    ended."""
    whole = mapped = 0
    inside = False
    try:
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line[0].islower() or line[0].isdigit():
                inside = str(folder) in line
            elif line.startswith("Rss:"):
                size = int(line.split()[1]) << 10
                whole += size
                mapped += size if inside else 0
    except OSError:
        return 0, 0
    return whole - mapped, whole


CHILD = """
import json, sys, time
import subcompress
file, base, out = sys.argv[1:]
began = time.perf_counter()
times = []
done = lambda n: times.append(time.perf_counter())
subcompress.unpack(file, out, base=base, format="transformers", shard_size=500_000_000, done=done)
ended = time.perf_counter()
print(json.dumps([ended - began, ended - times[0]]))
"""
"""Unpacks, and prints the seconds in all and from the first bytes on."""


def unpack(folder: Path, file: Path, out: Path) -> tuple[list[float], int, int]:
    """Unpack in a process of its own; return the seconds that it says and its most memory, as `resident` has it."""
    words = [sys.executable, "-c", CHILD, *map(str, (file, folder, out))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    most = [0, 0]
    while process.poll() is None:
        most = [max(pair) for pair in zip(most, resident(process.pid, folder), strict=True)]
        time.sleep(EVERY)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"unpack ended with {process.returncode}")
    return json.loads(process.stdout.read()), most[0], most[1]


def disk_rate(folder: Path, size: int) -> float:
    """Bytes a second that `dd` writes to a new file, flushed to the disk."""
    count = size >> 22
    words = ["dd", "if=/dev/zero", f"of={folder / 'zeros'}", "bs=4M", f"count={count}", "conv=fsync"]
    begin = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    (folder / "zeros").unlink()
    return (count << 22) / seconds


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--folder", help="where to make a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(os.path.realpath(name))
        weights = make_base(folder / "base", given.layers)
        file_bytes = pack_tune(folder / "base", folder / "net.safetensors")
        seconds, beyond, whole = unpack(folder / "base", folder / "net.safetensors", folder / "out")
        written = sum(path.stat().st_size for path in (folder / "out").iterdir())
        rate, disk = written / seconds[1], disk_rate(folder, written)
    found = {
        "weights": weights,
        "file_bytes": file_bytes,
        "output_bytes": written,
        "seconds": round(seconds[0], 2),
        "seconds_of_writing": round(seconds[1], 2),
        "peak_mb_beyond_the_base": round(beyond / 1e6),
        "peak_mb": round(whole / 1e6),
        "mb_per_second": round(rate / 1e6),
        "dd_mb_per_second": round(disk / 1e6),
        "part_of_the_disk": round(rate / disk, 2),
        "cpus": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
