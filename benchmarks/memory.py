"""Peak memory of a fit on a base, against the bytes of the network.

    python benchmarks/memory.py [-o benchmarks/results]
    python benchmarks/memory.py --folder DIR

Without a folder, a Llama with random weights is made and written to a temporary one. Each row is a process of its own,
which reads the folder, and for a fit trains on random tokens for a few steps, with norms, biases and heads moving, and
packs. Its peak is VmHWM of Linux: resident pages, those of mapped files counted. `libraries` is the peak of a process
that has imported all that the others do. Moves are measured in fewer steps than a fit takes, which all take alike.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import subcompress
from subcompress.data.pretrained import load_model
from subcompress.data.ragged import Ragged
from subcompress.format.versions import about
from subcompress.subspace import measuring

SHAPES = {"tiny": (64, 2, 512), "small": (512, 8, 16_384)}
"""Width, layers and vocabulary of a Llama that is made."""

ROWS = ("libraries", "from_pretrained", "fit")

EXAMPLES, BATCH, STEPS = 16, 2, 4


def make(folder: Path, shape: str) -> None:
    """Write a Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def data(vocabulary: int, length: int) -> subcompress.Data:
    """Random tokens, all of them to be learned."""
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (length - i % 4,), generator=drawn) for i in range(EXAMPLES)]
    split = Ragged({"input_ids": ids}, list(ids))
    return subcompress.Data(split, split, split, loss="next-token")


def peak() -> int:
    """Bytes that were resident at most in this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux says it"
    return int(found[1]) * 1024


def row(name: str, folder: Path, run: Path, length: int) -> None:
    """What a process does; prints its peak."""
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoConfig

    def model() -> Any:
        return load_model(folder, "causal-lm")

    if name == "from_pretrained":
        sum(float(p.detach().sum()) for p in model().parameters())
    elif name != "libraries":
        vocabulary = AutoConfig.from_pretrained(folder).vocab_size
        options: dict[str, Any] = {"d": 200, "steps": STEPS, "batch_size": BATCH, "threads": 1, "base": folder}
        measuring.LEAST = STEPS
        subcompress.fit(model, data(vocabulary, length), run, **options)
        subcompress.pack(run, run / "net.safetensors")
    print(peak())


def measured(name: str, folder: Path, length: int) -> int:
    """The peak of a row, in a process of its own."""
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, __file__, "--row", name, "--folder", str(folder), "--run", run]
        command += ["--length", str(length)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout.split()[-1])


def table(folder: Path, length: int, rows: tuple[str, ...] = ROWS) -> list[str]:
    """The lines of a table."""
    with torch.device("meta"):
        network = load_model(folder, "causal-lm", weights=False)
    weights = sum(p.numel() for p in network.parameters())
    peaks = {name: measured(name, folder, length) for name in rows}
    lines = ["| what | peak | beyond the libraries | of the network's float32 weights |", "|---|---|---|---|"]
    for name, bytes_ in peaks.items():
        more = bytes_ - peaks["libraries"]
        lines.append(f"| {name} | {bytes_ / 1e6:,.0f} MB | {more / 1e6:,.0f} MB | {more / (4 * weights):.2f} |")
    size = f"{weights:,} weights, {4 * weights / 1e6:,.0f} MB as float32"
    return [f"{size}; {STEPS} steps of {BATCH} examples of {length} tokens, evaluations of {EXAMPLES}", "", *lines]


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder of transformers with a causal language model")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the Llama that is made without a folder")
    parser.add_argument("-o", "--output", type=Path, help="a folder for memory.md")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row is not None:
        return row(given.row, given.folder, given.run, given.length)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        if given.folder is None:
            make(folder, given.shape)
        lines = table(folder, given.length)
    command = f"python benchmarks/memory.py{' --folder DIR' if given.folder else ''} --length {given.length}"
    lines = [f"Peak memory, {about()['date'][:10]}, {about()['machine']}: `{command}`", "", *lines]
    print("\n".join(lines))
    if given.output is not None:
        name = f"memory-{given.folder.name}.md" if given.folder else "memory.md"
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
