"""Many adapters of one base in one process: bytes of a saved adapter, time of a switch, and memory.

python benchmarks/peft_adapters.py --base DIR --adapters 100

DIR is a folder with a causal language model of transformers. Each adapter has a seed of its own and random coordinates,
is saved by `save_pretrained` and loaded by `load_adapter`. A switch is `set_adapter` and the weights of the adapter,
as the next pass uses them. Memory is that of the process: its own, and what it maps from files, such as the base.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from subcompress.peft import SubspaceConfig


def memory() -> str:
    """Memory of the process: what no file backs, and what is mapped from files."""
    pairs = (line.split()[:2] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    found = {name.rstrip(":"): int(kb) / 1e3 for name, kb in pairs}
    return f"{found['RssAnon']:.0f} MB and {found['RssFile']:.0f} MB of files"


def save_adapters(model: Any, folder: Path, n: int, d: int) -> list[int]:
    """Save n adapters, which the model then forgets; their bytes."""
    sizes = []
    for seed in range(n):
        name = f"task-{seed}"
        model.add_adapter(name, SubspaceConfig(d=d, seed=seed, task_type="CAUSAL_LM"))
        adapter = model.base_model.subcompress_layer.adapters[name]
        with torch.no_grad():
            adapter.z.copy_(torch.randn(d, generator=torch.Generator().manual_seed(seed)))
        model.save_pretrained(folder, selected_adapters=[name])
        sizes.append((folder / name / "adapter_model.safetensors").stat().st_size)
        model.delete_adapter(name)
    return sizes


def switch_times(model: Any, names: list[str]) -> list[float]:
    """Seconds of each switch, with the weights that the next pass computes with."""
    times = []
    for name in names:
        start = time.perf_counter()
        model.set_adapter(name, inference_mode=True)
        model.base_model._acting_weights()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--d", type=int, default=1000)
    options = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(options.base).eval()
    weights = sum(p.numel() for p in base.parameters())
    alone = memory()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model = peft.get_peft_model(base, SubspaceConfig(d=options.d, task_type="CAUSAL_LM")).eval()
        print(f"{weights:,} weights; {time.perf_counter() - start:.1f} s to make the first adapter")
        sizes = save_adapters(model, Path(folder), options.adapters, options.d)
        names = [f"task-{seed}" for seed in range(options.adapters)]
        start = time.perf_counter()
        for name in names:
            model.load_adapter(Path(folder) / name, name)
        each = (time.perf_counter() - start) / len(names)
    loaded = memory()
    times = switch_times(model, names)
    print(f"a saved adapter: {min(sizes)} to {max(sizes)} bytes, d = {options.d}")
    print(f"loading one: {1e3 * each:.1f} ms in the mean")
    print(
        f"a switch: {1e3 * statistics.mean(times):.2f} ms in the mean, {1e3 * statistics.median(times):.2f} ms median"
    )
    print(f"memory: {alone} with the base, {loaded} with {len(names)} adapters")


if __name__ == "__main__":
    main()
