"""Networks of transformers and texts, as named on the command line.

--model hf:DIR_OR_ID[@REVISION][,task=TASK][,labels=N][,weights=none][,dtype=DTYPE]
--data FILE.csv|.tsv|.jsonl[,length=N][,packing=yes][,tokenizer=DIR_OR_ID[@REVISION]]
--data hf:DIR_OR_ID[,config=C][,train=SPLIT][,validation=SPLIT][,test=SPLIT][,text=COLUMN]... and the options of a file
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import SubcompressError
from subcompress.remote.references import HF, split_options
from subcompress.support.names import TEXTS
from subcompress.support.suggestions import suggestion
from subcompress_cli.options import MODEL, SETS
from subcompress_cli.options import TEXTS as DATA

if TYPE_CHECKING:
    from torch import nn

    from subcompress import Data
    from subcompress.format.facts import Facts
    from subcompress.tensors.layout import Layout

CAUSAL = "causal-lm", "AutoModelForCausalLM"
"""The task of language models, by both of its names."""

OF_MODEL = ("task", "labels", "weights", "dtype")
OF_TEXTS = ("length", "packing", "tokenizer")
OF_SETS = ("config", "train", "validation", "test")
COLUMNS = ("text", "text_pair", "label", "prompt", "completion", "messages")
"""The options of each argument; the columns of a data set by our names."""


def is_texts(name: str) -> bool:
    """Return whether --data names texts: a file, or a data set of the library datasets."""
    return name.startswith(HF) or name.partition(",")[0].lower().endswith(TEXTS)


def packed(name: str) -> str:
    """The argument of --data with texts packed. Raises SubcompressError if it names none."""
    if not is_texts(name):
        raise SubcompressError(
            f"--packing needs texts for a language model, and --data {name} is something else: leave it out"
        )
    return name if ",packing=" in name else f"{name},packing=yes"


def place_of(name: str) -> tuple[str, str | None]:
    """The folder or the id that `hf:...` names, and its revision. Raises SubcompressError."""
    return _place(_parts(name.removeprefix(HF), OF_MODEL, MODEL)[0])


def task_of(name: str | None) -> str:
    """The task that `hf:...` names, the default for other networks. Raises SubcompressError."""
    options = _parts(name.removeprefix(HF), OF_MODEL, MODEL)[1] if name is not None and name.startswith(HF) else {}
    return options.get("task", "classification")


def model(name: str, facts: Facts | None = None, layout: Layout | None = None) -> nn.Module:
    """The network that `hf:...` names, for as many labels as it says, or the data's facts do, or its configuration.

    layout: that of a file it is for, which says how many labels it has; the weights are left as they come, at random.
    Raises SubcompressError.
    """
    from subcompress.data import pretrained

    place, options = _parts(name.removeprefix(HF), OF_MODEL, MODEL)
    where, revision = _place(place)
    task, labels = options.get("task", "classification"), _number(options, "labels", MODEL)
    if (weights := options.get("weights", "pretrained")) not in ("pretrained", "none"):
        raise SubcompressError(f"weights= must be pretrained or none; got {weights!r}: --model {MODEL}")
    pretrained.check_task(task)
    if labels is None and task in pretrained.LABELED:
        if layout is not None:
            labels = pretrained.labels_of(layout, where, task, revision=revision)
        elif facts is not None and facts.labels:
            labels = len(facts.labels)
    taken = weights == "pretrained" and layout is None
    dtype = options.get("dtype", "float32") if layout is None else pretrained.dtype_of(layout)
    return pretrained.load_model(where, task, labels=labels, weights=taken, revision=revision, dtype=dtype)


def data(name: str, model_name: str | None) -> Data:
    """The texts of a file or a data set, as tokens of the tokenizer named with it, or of the model's: with labels, or
    for a language model where the task of the network is that.

    Raises SubcompressError.
    """
    from subcompress.data import datasets, language, pretrained, texts

    of_set = name.startswith(HF)
    known = (*OF_TEXTS, *OF_SETS, *COLUMNS) if of_set else OF_TEXTS
    file, options = _parts(name.removeprefix(HF), known, SETS if of_set else DATA)
    continued = task_of(model_name) in CAUSAL
    packing = _packing(options, continued)
    place = options.get("tokenizer")
    if place is None:
        if model_name is None or not model_name.startswith(HF):
            raise SubcompressError(
                f"the texts of {file} need a tokenizer: give --model hf:DIR_OR_ID, or name one in --data {DATA}"
            )
        place, _ = _parts(model_name.removeprefix(HF), OF_MODEL, MODEL)
    where, revision = _place(place)
    tokenizer = pretrained.load_tokenizer(where, revision=revision)
    length = _number(options, "length", DATA)
    if continued:
        length = _length_for(model_name, tokenizer, length)
    if of_set:
        source = datasets.Source(file, options.get("config"), _chosen(options, OF_SETS[1:]), _chosen(options, COLUMNS))
        return datasets.load(source, tokenizer, length, continued=continued, packing=packing)
    if continued:
        return language.load(file, tokenizer, length, packing)
    return texts.load(file, tokenizer, texts.LENGTH if length is None else length)


def _packing(options: dict[str, str], continued: bool) -> bool:
    """Whether texts are packed. Raises SubcompressError for another word than yes or no, and for texts with labels."""
    if (given := options.get("packing", "no")) not in ("yes", "no"):
        raise SubcompressError(f"packing= must be yes or no; got {given!r}: --data {DATA}")
    if given == "yes" and not continued:
        raise SubcompressError(
            "packing works for language models only: give --model hf:DIR,task=causal-lm, or leave it out"
        )
    return given == "yes"


def _length_for(model_name: str | None, tokenizer: Any, length: int | None) -> int:
    """Tokens of an example for a language model: at most what it takes. Raises SubcompressError for more."""
    from subcompress.data import language, pretrained

    if model_name is None or not model_name.startswith(HF):
        return language.length_of(tokenizer, length)
    where, revision = place_of(model_name)
    context = pretrained.context_of(where, revision=revision)
    if length is not None and context is not None and length > context:
        raise SubcompressError(f"length must be at most the {context} tokens that the network takes; got {length}")
    usual = language.length_of(tokenizer, length)
    return usual if context is None or length is not None else min(usual, context)


def _chosen(options: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: options[name] for name in names if name in options}


def _parts(name: str, known: tuple[str, ...], usage: str) -> tuple[str, dict[str, str]]:
    """Split an argument into what comes before the options, and the options."""
    head, options = split_options(name)
    if unknown := [key for key in options if key not in known]:
        raise SubcompressError(f"{usage} takes {', '.join(known)}; got {unknown[0]!r}{suggestion(unknown[0], known)}")
    if not head:
        raise SubcompressError(f"{usage} needs a folder or an ID on the Hub; got {name!r}")
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
