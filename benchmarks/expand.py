"""How fast weights are rebuilt: our backends, the limit that memory sets, and the peers, side by side.

    python benchmarks/expand.py [--rounds 9] [--only PART ...] [--largest 1e9] [--vectors KIND] [--json] [-o FOLDER]

Parts: `load` (a file into a module, against reading the dense file), `rows` (into a buffer that is there, against
filling it), `basis` (against a dense random basis), `scaling` (time and memory against D and d), `disk` (a file of 10^9
weights written out, against the disk's own rate), and `cuda` (a GPU, where there is one). Coordinates are random, of
four bits. Variants run in turn, in one process; medians, and the ratio of each to the first one of its table. Buffers
are warm, files in the page cache where nothing else is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import mmap
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import subcompress
from subcompress import format
from subcompress.format.record import Coded, Group, Record
from subcompress.native import compiled
from subcompress.operators import HadamardBlocks
from subcompress.operators.fastfood import Fastfood
from subcompress.operators.forms import Seeded
from subcompress.operators.kernels import Segment
from subcompress.operators.onehot import OneHot
from subcompress.rebuild.backends import BACKENDS, available
from subcompress.rebuild.expand import expand, expand_into
from subcompress.rebuild.streaming import stream
from subcompress.tensors.layout import Layout, TensorSpec

Rows = list[dict[str, Any]]
D, d = 25_000_000, 4_000


def coordinates(d: int) -> np.ndarray:
    """(d,) random integers of four bits, small enough that any d may meet in one block."""
    return np.random.default_rng(d).integers(-3, 4, d).astype(np.int32)


def record_of(D: int, d: int, tensors: int = 25, digest: bool = True) -> Record:
    """D weights in equal matrices, with the digest of what they are or without."""
    side = D // tensors
    layout = Layout(tuple(TensorSpec(f"w.{i}", "F32", (side // 1_000, 1_000)) for i in range(tensors)))
    group = Group(HadamardBlocks.sized(D, d, 7), 4, coordinates(d))
    record = Record(7, layout, (group,), tuple(Coded(2.0**-7) for _ in layout))
    return replace(record, digest=stream(record)) if digest else record


class Matrices(nn.Module):
    """A module of the same matrices."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.zeros(spec.shape)) for spec in record.layout])


def in_turn(
    variants: dict[str, Callable[[], object]], rounds: int, between: Callable[[], object] | None = None
) -> Rows:
    """Milliseconds of each: the median of the rounds after a first one, and its ratio to the first variant's."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    gc.disable()
    for _ in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if between is not None:
                between()
            times[name].append(1e3 * (time.perf_counter() - began))
    gc.enable()
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    first = next(iter(medians.values()))
    return [
        {"what": name, "ms": ms, "ratio": ms / first, "fastest_ms": min(times[name])} for name, ms in medians.items()
    ]


def load(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Loading a file into a module, against loading the dense file into preallocated tensors."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        packed, dense, seeded = (Path(folder) / f"{name}.safetensors" for name in ("net", "dense", "seeded"))
        record = record_of(D, d)
        format.save(record, packed)
        subcompress.unpack(packed, dense)
        entries = tuple(Coded(2.0**-7, start=Seeded(2.0**-9)) for _ in record.layout)
        format.save(replace(record, entries=entries), seeded)
        module = Matrices(record)

        def cold() -> None:
            with dense.open("rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            owned()

        def owned() -> dict[str, Tensor]:
            return {name: t.clone() for name, t in safetensors.torch.load_file(dense).items()}

        variants: dict[str, Callable[[], object]] = {
            "dense file: `safetensors.torch.load_file` + clone": owned,
            "dense file: load_file + load_state_dict": lambda: module.load_state_dict(
                safetensors.torch.load_file(dense)
            ),
            "**ours: `load(check=False)`**": lambda: subcompress.load(packed, module, check=False),
            "ours: `load`, digest checked": lambda: subcompress.load(packed, module),
            "ours: `load(check=False)` of seeded starts": lambda: subcompress.load(seeded, module, check=False),
            "ours: `expand`, new tensors": lambda: expand(record),
        }
        if hasattr(os, "posix_fadvise"):
            os.sync()
            variants["dense file: the same as the first, not in the page cache"] = cold
        title = f"D = {D:,}, d = {d:,}: {packed.stat().st_size:,} bytes into a module, against {dense.stat().st_size:,}"
        yield title, in_turn(variants, options.rounds)


def filler(name: str, D: int, d: int, out: Tensor) -> Callable[[], None]:
    """One backend's weights into `out`."""
    backend, operator = BACKENDS[name], HadamardBlocks.sized(D, d, 7)
    c, segments = torch.from_numpy(coordinates(d)).to(backend.device), [Segment(0, out, 2.0**-7)]
    return lambda: backend.fill(operator, c, segments)


def seeded_filler(D: int, d: int, out: Tensor) -> Callable[[], None]:
    """Weights that start from the seed, as those of new fits, into `out` where it lies: all of a record's."""
    record = record_of(D, d, digest=False)
    seeded = replace(record, entries=tuple(Coded(2.0**-7, start=Seeded(2.0**-9)) for _ in record.layout))
    state = dict(zip((s.name for s in record.layout), out.view(len(record.layout), -1, 1_000), strict=True))
    return lambda: expand_into(seeded, state)


def with_vectors(kind: str, run: Callable[[], None]) -> Callable[[], None]:
    """The same with one kind of vectors."""

    def forced() -> None:
        with compiled.force_kind(kind):
            run()

    return forced


def rows(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Into a buffer that is there, with the peers' own ways to make D numbers of d."""
    out = torch.zeros(D)
    z, half = torch.randn(d), torch.zeros(D, dtype=torch.bfloat16)
    fastfood, onehot = Fastfood(D, d, 7), OneHot(D, d, 7)
    fastfood.matvec(z), onehot.matvec(z)  # their tables are ready, ours are made anew every time
    variants: dict[str, Callable[[], object]] = {"a plain fill (the limit)": lambda: out.fill_(1.0)}
    if "native" in available():
        for kind in (
            taken := compiled.selected_kind(),
            *(k for k in reversed(compiled.available_kinds()) if k != taken),
        ):
            bold = "**" * (kind == taken)
            variants[f"{bold}ours: native, {kind}{bold}"] = with_vectors(kind, filler("native", D, d, out))
            variants[f"{bold}the same from seeded starts, {kind}{bold}"] = with_vectors(kind, seeded_filler(D, d, out))
        variants["ours: native, bfloat16"] = filler("native", D, d, half)
    for name in ("torch", "numpy"):
        variants[f"ours: {name}"] = filler(name, D, d, out)
    variants |= {
        "`torch.randn`": lambda: torch.randn(D),
        "`torch.randn` into the buffer": lambda: out.normal_(),
        "Fastfood, torch, tables kept": lambda: fastfood.matvec(z),
        "one index a weight (as Uni-LoRA), torch, tables kept": lambda: onehot.matvec(z),
    }
    if (merged := _peft()) is not None:
        variants["PEFT's UniLoRA: 200,000 factors, of rank 4, multiplied out to 25 matrices"] = merged
    yield f"D = {D:,}, d = {d:,}, into a buffer that is there", in_turn(variants, options.rounds)


def _peft() -> Callable[[], object] | None:
    """What `merge_and_unload` computes of its adapter, where peft can be imported."""
    try:
        import peft
    except ImportError:
        return None
    names = [str(i) for i in range(25)]
    net = nn.ModuleDict({n: nn.Linear(1_000, 1_000, bias=False) for n in names})
    config = peft.UniLoraConfig(r=4, theta_d_length=d, target_modules=names)
    layers = [m for m in peft.get_peft_model(net, config).modules() if hasattr(m, "get_delta_weight")]

    @torch.no_grad()
    def run() -> None:
        for layer in layers:
            layer.get_delta_weight("default")

    return run


def basis(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """PRANC (arXiv:2206.08464): theta is a sum of d seeded Gaussian vectors, each drawn again when it is needed."""
    D, d = 1_000_000, 1_000
    z, out, theta, generator = torch.randn(d).tolist(), torch.zeros(D), torch.zeros(D), torch.Generator()
    vector = torch.zeros(D)

    def pranc() -> None:
        theta.zero_()
        for j, a in enumerate(z):
            generator.manual_seed(j)
            theta.add_(vector.normal_(generator=generator), alpha=a)

    ours = filler(_fastest(), D, d, out)
    variants = {"**ours**": ours, "a dense basis, drawn again (as PRANC)": pranc}
    yield f"D = {D:,}, d = {d:,}", in_turn(variants, 2)


def _fastest() -> str:
    return [n for n in available() if BACKENDS[n].device == "cpu"][-1]


def scaling(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Time against D and against d, with the slope of the line through their logarithms; and peaks of memory."""
    yield from _against(_fastest(), options)
    found = [
        {"what": f"{what}, D = {n:,}", "MB": _peak(what, n), "dense MB": 4 * n / 1e6}
        for what, most in (("stream", options.largest), ("expand", 10**8))
        for n in SIZES
        if n <= most
    ]
    yield "highest memory, beyond what the process held before", found


SIZES = 10**5, 10**6, 10**7, 10**8, 10**9
COUNTS = 10**2, 10**3, 10**4, 10**5, 10**6


def _against(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """A backend's time against D and against d."""
    points = [(n, _time(name, n, d)) for n in SIZES if n <= options.largest]
    yield f"{name}: time against D at d = {d:,}", _line(points, "D")
    yield f"{name}: time against d at D = {D:,}", _line([(n, _time(name, D, n)) for n in COUNTS], "d")


def _time(name: str, D: int, d: int) -> float:
    run, repeats = filler(name, D, d, torch.zeros(D, device=BACKENDS[name].device)), max(1, 10**7 // D)
    between = torch.cuda.synchronize if BACKENDS[name].device == "cuda" else None
    return in_turn({"": lambda: [run() for _ in range(repeats)]}, 3, between)[0]["ms"] / repeats


def _line(points: list[tuple[int, float]], letter: str) -> Rows:
    slope = np.polyfit([math.log(n) for n, _ in points], [math.log(ms) for _, ms in points], 1)[0]
    found: Rows = [{"what": f"{letter} = {n:,}", "ms": ms} for n, ms in points]
    return [*found, {"what": "log-log slope", "slope": float(slope)}]


PEAK = """
import re, sys
sys.path.insert(0, {folder!r})
from expand import expand, record_of, stream
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
record_of(10**5, {d})
record = record_of({D}, {d}, digest=False)
before = peak()
{what}(record)
print((peak() - before) * 1024 / 1e6)
"""


def _peak(what: str, D: int) -> float:
    code = PEAK.format(folder=str(Path(__file__).parent), what=what, D=D, d=d)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def disk(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """`unpack` of the largest D, against sequential writes of as many bytes; all reach the disk."""
    n = int(options.largest)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        packed, dense, plain = (Path(folder) / name for name in ("net.safetensors", "dense.safetensors", "plain"))
        format.save(record_of(n, d), packed)
        block = mmap.mmap(-1, 1 << 22)  # aligned, as writing past the page cache asks for
        block.write(os.urandom(1 << 22))

        def write(flags: int) -> None:
            file = os.open(plain, os.O_WRONLY | os.O_CREAT | flags)
            for _ in range(-(-4 * n // len(block))):
                os.write(file, block)
            os.fsync(file)
            os.close(file)

        def unpack(dtype: str | None = None) -> None:
            subcompress.unpack(packed, dense, dtype=dtype)

        variants: list[tuple[str, Callable[[], None], int]] = [
            ("a sequential write past the page cache: the disk's rate", lambda: write(os.O_DIRECT), 4 * n),
            ("a sequential write through it, as `dd conv=fsync`", lambda: write(0), 4 * n),
            ("**`unpack`, digest checked**", unpack, 4 * n),
            ("`unpack --dtype bf16`", lambda: unpack("bf16"), 2 * n),
        ]
        found: dict[str, list[float]] = {}
        for _ in range(5):
            for name, run, size in variants:
                began = time.perf_counter()
                run()
                found.setdefault(name, []).append(size / (time.perf_counter() - began) / 1e6)
                plain.unlink(missing_ok=True), dense.unlink(missing_ok=True)
                os.sync()
        table: Rows = [{"what": k, "MB/s": statistics.median(v)} for k, v in found.items()]
        peak = _unpack_peak(packed, dense)
        table.append({"what": "highest memory of that process, all of it (MB)", "MB": peak})
        rate = table[0]["MB/s"]
        for row in table[:-1]:
            row["of the disk's rate"] = row["MB/s"] / rate
        yield f"D = {n:,} ({4 * n / 1e9:.1f} GB of float32) to a file", table


def _unpack_peak(packed: Path, dense: Path) -> float:
    code = f"""
import re, subcompress
subcompress.unpack({str(packed)!r}, {str(dense)!r})
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    dense.unlink()
    return int(done.stdout) * 1024 / 1e6


def cuda(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """On a GPU: against a device fill, and against the copy of the dense weights from pinned memory."""
    if not torch.cuda.is_available():
        yield "cuda: torch sees no device here, so these rows are not measured", []
        return
    for n in (D, 10**9):
        if n <= options.largest:
            yield from _on_device(n, options.rounds)
    name = [b for b in available() if BACKENDS[b].device == "cuda"][-1]
    yield from _against(name, options)


def _on_device(n: int, rounds: int) -> Iterator[tuple[str, Rows]]:
    out, host = torch.zeros(n, device="cuda"), torch.zeros(n, pin_memory=True)
    limit: dict[str, Callable[[], object]] = {"a device fill (the limit)": lambda: out.fill_(1.0)}
    variants = dict(limit)
    for name in reversed([b for b in available() if BACKENDS[b].device == "cuda"]):
        variants[f"ours: {name}"] = filler(name, n, d, out)
    if "triton" in available():
        for dtype in (torch.float16, torch.bfloat16):
            variants[f"ours: triton, {str(dtype)[6:]}"] = filler("triton", n, d, torch.zeros_like(out, dtype=dtype))
    variants["copy of the dense weights from pinned memory"] = lambda: out.copy_(host)
    variants["`torch.randn` into the buffer"] = lambda: out.normal_()
    title = f"{torch.cuda.get_device_name()}: D = {n:,}, d = {d:,}"
    yield title, in_turn(variants, rounds, torch.cuda.synchronize)
    operator, g, z = HadamardBlocks.sized(n, d, 7), torch.randn(n, device="cuda"), torch.randn(d, device="cuda")
    steps = limit | {
        "weights from z": lambda: operator.write(z, [Segment(0, out, 0.5)]),
        "P^T of the gradients": lambda: operator.adjoint([(0, g, 0.5)]),
    }
    yield f"the products of training there, D = {n:,}, d = {d:,}", in_turn(steps, rounds, torch.cuda.synchronize)


PARTS = {"load": load, "rows": rows, "basis": basis, "scaling": scaling, "disk": disk, "cuda": cuda}


def markdown(title: str, table: Rows) -> Iterator[str]:
    """A table's lines."""
    yield f"\n{title}\n"
    if not table:
        return
    columns = list(dict.fromkeys(key for row in table for key in row if key != "fastest_ms"))
    yield "| " + " | ".join("" if c == "what" else c for c in columns) + " |"
    yield "|---" * len(columns) + "|"
    for row in table:
        yield "| " + " | ".join(_cell(c, row.get(c, "")) for c in columns) + " |"


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if column in ("MB/s", "dense MB", "MB"):
        return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def machine() -> str:
    """What the figures were measured on, and with which vectors."""
    cpu = re.search(r"model name\s*: (.*)", text) if (text := _read("/proc/cpuinfo")) else None
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu[1] if cpu else platform.processor()}, {torch.get_num_threads()} threads{device}, "
        f"vectors: {compiled.cpu_engine()} (of {', '.join(compiled.available_kinds()) or 'none compiled'}), "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--largest", type=float, default=1e9, help="the largest D")
    parser.add_argument("--folder", type=Path, help="where large files are written; the system's if left out")
    parser.add_argument("--vectors", choices=compiled.KINDS, help="what rows are computed with on the CPU")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    os.environ[compiled.VECTORS] = options.vectors or os.environ.get(compiled.VECTORS, "")
    lines, found = [machine()], {}
    if not options.json:
        print(lines[0], flush=True)
    for part in options.only:
        for title, table in PARTS[part](options):
            found[title] = table
            new = list(markdown(title, table))
            lines += new
            if not options.json:
                print("\n".join(new), flush=True)
    if options.json:
        print(json.dumps({"machine": machine(), "tables": found}))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        kind = "cuda" if options.only == ["cuda"] else options.vectors
        (options.output / f"expand{f'-{kind}' if kind else ''}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
