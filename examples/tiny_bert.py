"""What the examples with texts use where no --model and --csv are given: a BERT of some thousand weights, its
tokenizer and invented reviews, written to a folder."""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from pathlib import Path

from transformers import BertConfig, BertTokenizer

GOOD, BAD = ["good", "fine", "great", "clever"], ["bad", "awful", "dull", "clumsy"]
REST = ["the", "a", "film", "plot", "actor", "is", "was", "very", "so", "and", "with", "scene", "every", "of"]


def make(folder: Path) -> tuple[Path, Path]:
    """A folder as `from_pretrained` takes it, without weights, and a CSV file of reviews. Returns both."""
    model, texts = folder / "bert", folder / "reviews.csv"
    model.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *REST]
    (model / "vocab.txt").write_text("\n".join(words), "utf-8")
    BertTokenizer(str(model / "vocab.txt")).save_pretrained(model)
    BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,  # the usual 0.02 is for layers fifty times as wide
    ).save_pretrained(model)
    drawn = random.Random(0)
    with texts.open("w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["text", "label"])
        for _ in range(600):
            label, opinions = drawn.choice([("positive", GOOD), ("negative", BAD)])
            before, after = (drawn.choices(REST, k=drawn.randrange(1, most)) for most in (16, 8))
            rows.writerow([" ".join([*before, drawn.choice(opinions), *after]), label])
    return model, texts


def arguments(text: str) -> argparse.Namespace:
    """The options of both examples: model, csv, base, d, epochs and output."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("--model", help="a folder, or an id on the Hub  [default: a tiny BERT]")
    parser.add_argument("--csv", type=Path, help="texts with a label each  [default: invented reviews]")
    parser.add_argument("--base", help="weights to start from, the model's own for one  [default: from the seed]")
    parser.add_argument("--d", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, help="a folder to write to  [default: a temporary one]")
    given = parser.parse_args()
    if (given.model is None) != (given.csv is None):
        parser.error("--model and --csv go together")
    given.output = given.output or Path(tempfile.mkdtemp())
    given.output.mkdir(parents=True, exist_ok=True)
    if given.model is None:
        given.model, given.csv = make(Path(tempfile.mkdtemp()))
    return given
