"""A thousand fine-tunes of one base: bytes on disk, memory of those that are idle, and the time to switch.

    python benchmarks/variants.py --model DIR [--variants 1000] [-o benchmarks/results]
    python benchmarks/variants.py --model DIR --peers [--variants 100] [-o benchmarks/results]

With --peers: graphs beside the base and `Variants` beside ONNX Runtime's and PEFT's adapters (variant_peers.py).
The variants stand on the network of DIR (transformers, for sequence classification), acting on norms, biases and head,
with coordinates as a fit leaves them (normal, 4 bits, d = 1,500), not trained: neither bytes nor times depend on what
they mean.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import variant_peers

import subcompress
from subcompress.data import pretrained

SWITCHES = 200


def resident() -> int:
    """Bytes of this process's memory that are its own: what is mapped from files is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status: run it on Linux")


def measure(folder: Path, variants: int, d: int) -> list[tuple[str, str]]:
    """Rows of the table: what, and its figure."""
    with tempfile.TemporaryDirectory() as made:
        torch.manual_seed(0)
        module = pretrained.load_model(folder, labels=2)
        subspace = subcompress.Subspace.of(module, d, base=folder)
        paths = []
        for i in range(variants):
            with torch.no_grad():
                subspace.z.normal_(std=0.1)
            subspace.round(4)
            paths.append(Path(made) / f"{i}.safetensors")
            subcompress.pack(subspace, paths[-1])
        sizes = [path.stat().st_size for path in paths]
        blocks = sum(path.stat().st_blocks * 512 for path in paths)
        dense = sum(p.nbytes for p in module.parameters())
        moved = subspace.plan.D
        del subspace

        began = time.perf_counter()
        held = subcompress.Variants(module, folder)
        opened = time.perf_counter() - began
        before = resident()
        began = time.perf_counter()
        for i, path in enumerate(paths):
            held.add(str(i), path)
        added = time.perf_counter() - began
        idle = (resident() - before) / variants
        held.use("0")
        times = []
        order = torch.randperm(variants, generator=torch.Generator().manual_seed(1)).tolist()
        for i in order[:SWITCHES]:
            began = time.perf_counter()
            held.use(str(i))
            times.append(time.perf_counter() - began)
        grown = resident() - before
        milliseconds = sorted(1000 * t for t in times)
        dense_ms = reading(module, Path(made))
    return [
        ("weights of the network; those that move", f"{sum(p.numel() for p in module.parameters()):,}; {moved:,}"),
        (f"{variants:,} files, whole, together", f"{sum(sizes):,} bytes ({min(sizes)} to {max(sizes)} each)"),
        ("the same in blocks of this file system", f"{blocks:,} bytes"),
        (f"{variants:,} dense copies would be", f"{variants * dense:,} bytes"),
        ("the base opened, its digest checked", f"{1000 * opened:.0f} ms, once"),
        ("a file added", f"{1000 * added / variants:.2f} ms"),
        ("memory an idle variant takes", f"{idle:,.0f} bytes"),
        (f"memory taken after {len(times)} switches, all variants counted", f"{grown / 2**20:.1f} MiB"),
        (
            f"to switch, the digest checked, of what is kept as it was opened (median; 90 %; slowest of {len(times)})",
            f"{statistics.median(milliseconds):.1f}; {milliseconds[len(times) * 9 // 10]:.1f}; "
            f"{milliseconds[-1]:.1f} ms",
        ),
        ("the dense file of one variant read into the module, warm (median of 20)", f"{dense_ms:.1f} ms"),
    ]


def reading(module: torch.nn.Module, folder: Path) -> float:
    """Milliseconds to load a dense file of the network's weights, the other way to switch."""
    from safetensors.torch import load_file, save_file

    save_file({n: t.contiguous() for n, t in module.state_dict().items()}, folder / "dense.safetensors")
    times = []
    for _ in range(20):
        began = time.perf_counter()
        module.load_state_dict(load_file(folder / "dense.safetensors"))
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Print the table, and write it where -o says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variants", type=int, help="1000 by default, 100 with --peers")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--d", type=int, default=1500)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    variants = options.variants or (100 if options.peers else 1000)
    more = "--peers " if options.peers else ""
    command = f"python benchmarks/variants.py --model DIR {more}--variants {variants}"
    if options.peers:
        rows = variant_peers.table(options.model, variants)
    else:
        command += f" --d {options.d}"
        pairs = measure(options.model, variants, options.d)
        rows = ["| what | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in pairs)]
    libraries = [f"{name} {version(name)}" for name in ("onnxruntime", "peft")] if options.peers else []
    about = [f"{os.cpu_count()} cores", f"torch {torch.__version__}", *libraries, f"Python {platform.python_version()}"]
    lines = [f"Variants of one base, {time.strftime('%Y-%m-%d')}, {', '.join(about)}: `{command}`", "", *rows]
    print("\n".join(lines))
    if options.output is not None:
        name = "variants-peers.md" if options.peers else "variants.md"
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / name).write_text("\n".join(lines) + "\n")


def version(name: str) -> str:
    """The version of an installed library."""
    return str(importlib.import_module(name).__version__)


if __name__ == "__main__":
    main()
