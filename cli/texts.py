"""Networks of transformers and files of texts, as named on the command line.

--model hf:DIR_OR_ID[@REVISION][,task=features][,labels=N][,weights=none]
--data FILE.csv|.tsv|.jsonl[,length=N][,tokenizer=DIR_OR_ID[@REVISION]]
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import SubcompressError
from subcompress.support.names import TEXTS
from subcompress.support.suggestions import suggestion
from subcompress_cli.options import MODEL
from subcompress_cli.options import TEXTS as DATA

if TYPE_CHECKING:
    from torch import nn

    from subcompress import Data
    from subcompress.format.facts import Facts
    from subcompress.tensors.layout import Layout

HF = "hf:"


def is_texts(name: str) -> bool:
    """Return whether --data names a file of texts."""
    return name.partition(",")[0].lower().endswith(TEXTS)


def model(name: str, facts: Facts | None = None, layout: Layout | None = None) -> nn.Module:
    """The network that `hf:...` names, for as many labels as it says, or the data's facts do, or its configuration.

    layout: that of a file it is for, which says how many labels it has; the weights are left as they come, at random.
    Raises SubcompressError.
    """
    from subcompress.data import pretrained

    place, options = _parts(name.removeprefix(HF), ("task", "labels", "weights"), MODEL)
    where, revision = _place(place)
    task, labels = options.get("task", "classification"), _number(options, "labels", MODEL)
    if (weights := options.get("weights", "pretrained")) not in ("pretrained", "none"):
        raise SubcompressError(f"weights is pretrained or none; {weights!r} is neither: --model {MODEL}")
    if labels is None and task == "classification":
        if layout is not None:
            labels = pretrained.labels_of(layout, where, revision=revision)
        elif facts is not None and facts.labels:
            labels = len(facts.labels)
    taken = weights == "pretrained" and layout is None
    return pretrained.load_model(where, task, labels=labels, weights=taken, revision=revision)


def data(name: str, model_name: str | None) -> Data:
    """The texts of a file, as tokens of the tokenizer named with it, or of the model's. Raises SubcompressError."""
    from subcompress.data import pretrained, texts

    file, options = _parts(name, ("length", "tokenizer"), DATA)
    place = options.get("tokenizer")
    if place is None:
        if model_name is None or not model_name.startswith(HF):
            raise SubcompressError(
                f"texts need a tokenizer: that of --model hf:DIR_OR_ID, or one that --data {DATA} names; "
                f"{file} has neither"
            )
        place, _ = _parts(model_name.removeprefix(HF), ("task", "labels", "weights"), MODEL)
    where, revision = _place(place)
    length = _number(options, "length", DATA)
    tokenizer = pretrained.load_tokenizer(where, revision=revision)
    return texts.load(file, tokenizer, texts.LENGTH if length is None else length)


def _parts(name: str, known: tuple[str, ...], usage: str) -> tuple[str, dict[str, str]]:
    """Split an argument into what comes before the options, and the options."""
    head, *rest = re.split(r",(?=\w+=)", name)
    options = dict(part.split("=", 1) for part in rest)
    if unknown := [key for key in options if key not in known]:
        raise SubcompressError(f"{usage} takes {', '.join(known)}; got {unknown[0]!r}{suggestion(unknown[0], known)}")
    if not head:
        raise SubcompressError(f"{usage} names a place; {name!r} does not")
    return head, options


def _place(name: str) -> tuple[str, str | None]:
    """Split a folder or an id from its revision."""
    if Path(name).expanduser().is_dir() or "@" not in name:
        return name, None
    place, _, revision = name.rpartition("@")
    return place, revision


def _number(options: dict[str, Any], key: str, usage: str) -> int | None:
    if (text := options.get(key)) is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise SubcompressError(f"{key} must be a whole number in {usage}; got {text!r}")
    return int(text)
