"""A fine-tune of a language model on one GPU: memory, tokens per second and bytes of the file, in at most 8 minutes.

    python benchmarks/gpu_finetune.py --folder DIR -o benchmarks/results
    python benchmarks/gpu_finetune.py -o benchmarks/results
    python benchmarks/gpu_finetune.py --tiny

DIR is a folder of transformers with a causal language model, such as SmolLM2-135M; without one, a Llama of that size
with random weights is made. Each row trains in the default tensors on random tokens: some steps that are not counted,
then those that are timed, then it is rounded and packed. Memory is what torch has allocated at most on the GPU in the
timed steps, weights counted; on a CPU it is that of the process so far. No row begins after `--minutes`. --tiny: a
Llama of some thousand weights and a few steps, on a CPU too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import subcompress
from subcompress.data.pretrained import load_model
from subcompress.data.ragged import Ragged
from subcompress.format.versions import about
from subcompress.training.checkpointing import checkpointed
from subcompress.training.loop import TrainOptions, train
from subcompress.training.tasks import Task


@dataclass(frozen=True)
class Size:
    """What is trained: a Llama of that width, layers and vocabulary where there is no folder, on so many examples of so
    many tokens a step."""

    width: int
    layers: int
    vocabulary: int
    batch: int
    length: int
    steps: int
    d: int


FULL, TINY = Size(576, 30, 49_152, 16, 512, 12, 2_000), Size(32, 2, 128, 4, 16, 2, 50)

WARM_UP = 2

TYPES = {
    "float32": ("float32", "fp32"),
    "float32, products in bfloat16": ("float32", "bf16"),
    "bfloat16": ("bfloat16", "bf16"),
}
"""What weights are held in, and the precision of a step."""

WAYS = {
    "whole batches": (1, False),
    "4 parts": (4, False),
    "checkpointed": (1, True),
    "4 parts, checkpointed": (4, True),
}
"""The parts of a batch, and whether layers are checkpointed."""


def make(folder: Path, size: Size) -> None:
    """Write a Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=8 * size.width // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def data(size: Size, vocabulary: int) -> subcompress.Data:
    """Random tokens. One example is evaluated, so that evaluations take no time."""
    drawn = torch.Generator().manual_seed(0)
    ids = list(torch.randint(vocabulary, (size.batch * size.steps, size.length), generator=drawn))
    train_split, one = Ragged({"input_ids": ids}, list(ids)), Ragged({"input_ids": ids[:1]}, ids[:1])
    return subcompress.Data(train_split, one, one, loss="next-token")


def memory(device: torch.device) -> int:
    """The peak of memory in bytes: of the GPU since the counter was reset, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def row(folder: Path, size: Size, device: torch.device, kind: str, way: str) -> str:
    """A row of the table."""
    (dtype, precision), (parts, checkpointing) = TYPES[kind], WAYS[way]
    model = load_model(folder, "causal-lm", dtype=dtype).to(device)
    model = checkpointed(model) if checkpointing else model
    sub = subcompress.Subspace.of(model, size.d, base=folder)
    task, given = Task.of("next-token"), data(size, model.get_input_embeddings().num_embeddings)
    del model  # the subspace has a copy

    def steps(n: int) -> float:
        recipe = TrainOptions(1, sub.plan.lr, size.batch, precision=precision, steps=n, accumulate=parts)
        return train(sub, given, task, recipe).seconds

    steps(min(WARM_UP, size.steps))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = steps(size.steps)
    peak = memory(device)
    sub.round(4)
    with tempfile.TemporaryDirectory() as out:
        file_bytes = subcompress.pack(sub, Path(out) / "net.safetensors")
    tokens = size.steps * size.batch * size.length / seconds
    return f"| {kind} | {way} | {peak / 1e6:,.0f} MB | {tokens:,.0f} | {file_bytes:,} |"


def table(folder: Path, size: Size, device: torch.device, minutes: float) -> list[str]:
    """The lines of the table: as many rows as there is time for."""
    began, lines = time.monotonic(), ["| weights | a batch of training | memory | tokens a second | bytes |"]
    lines.append("|---|---|---|---|---|")
    for kind in TYPES:
        for way in WAYS:
            if time.monotonic() - began > 60 * minutes:
                lines.append(f"| {kind} | {way} | no time | | |")
                continue
            lines.append(row(folder, size, device, kind, way))
            print(lines[-1], flush=True)
    return lines


def main(argv: list[str] | None = None) -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder of transformers with a causal language model")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a Llama of some thousand weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which no row begins")
    parser.add_argument("-o", "--output", type=Path, help="a folder for gpu-finetune.md")
    given = parser.parse_args(argv)
    size, device = TINY if given.tiny else FULL, torch.device(given.device)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        if given.folder is None:
            make(folder, size)
        lines = table(folder, size, device, given.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else about()["machine"]
    network = given.folder.name if given.folder else f"a Llama of width {size.width} with {size.layers} layers"
    batch = f"batches of {size.batch} examples of {size.length} tokens, d = {size.d:,}"
    head = f"{name}, torch {torch.__version__}, {about()['date']}: {network}, {batch}"
    print("\n".join([head, "", *lines]))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "gpu-finetune.md").write_text("\n".join([head, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
