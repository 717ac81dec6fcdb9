"""A BERT of 35,426 weights (Devlin et al. 2019, arXiv:1810.04805) as a base all of whose weights move.

Here because a fine-tune in a subspace of all weights died at every step size, while direct training is perfect.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from families.family import Family, Splits, accuracy

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = ("good", "great", "fine", "bright"), ("bad", "awful", "dull", "poor")
WORDS = ("a", "the", "film", "is", *GOOD, *BAD, "story", "plot", "cast", "very", "not")
NUMBERS = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}


def config() -> Any:
    """Sizes of the network."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertConfig(vocab_size=len(NUMBERS), num_labels=2, **sizes)


@cache
def base() -> Path:
    """A folder with an untrained network, which lasts as long as the process."""
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="tiny-bert-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config()).save_pretrained(folder)
    return folder


def make_net() -> nn.Module:
    """The network of the folder, with its weights."""
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(base())


class Reviews(Dataset[tuple[dict[str, Tensor], int]]):
    """Sentences such as "the plot is dull" as tokens, and whether they praise."""

    def __init__(self, n: int, seed: int) -> None:
        drawn, self.rows = random.Random(seed), []
        for _ in range(n):
            good = drawn.random() < 0.5
            words = f"the {drawn.choice(['film', 'story', 'plot', 'cast'])} is {drawn.choice(GOOD if good else BAD)}"
            tokens = [NUMBERS[w] for w in ("[CLS]", *words.split(), "[SEP]")]
            self.rows.append((torch.tensor(tokens), int(good)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], int]:
        tokens, label = self.rows[i]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, label


def load() -> Splits:
    """480, 60 and 60 sentences."""
    return Reviews(480, 0), Reviews(60, 1), Reviews(60, 2)


FAMILY = Family(
    "tiny_bert",
    make_net,
    load,
    d=3000,
    epochs=20,
    batch_size=16,
    metric=accuracy,
    goal=0.97,
    base=base,
    options={"act_on": "all"},
    steps=(1e-3,),
)
