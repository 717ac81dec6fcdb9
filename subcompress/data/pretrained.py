"""Networks and tokenizers of transformers, from a folder or the Hub: `pip install '.[transformers]'` in a clone.

Weights are read as safetensors or with `weights_only`; code that comes with a model is never run.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subcompress.errors import SubcompressError, memory_ran_out, one_line
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import Layout

TASKS = {"classification": "AutoModelForSequenceClassification", "features": "AutoModel"}
"""What a network is for -> the class of transformers that makes it."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What the weights in a folder are called."""


def load_model(
    place: str | Path,
    task: str = "classification",
    *,
    labels: int | None = None,
    weights: bool = True,
    revision: str | None = None,
) -> nn.Module:
    """The network of a folder, or of an id on the Hub, in float32, with transformers' own names in its state dict.

    labels: classes it tells apart, by default as many as its configuration says. weights: take those that are there;
    what they lack, such as a new head, and everything where there are none or it is false, starts at random, from
    torch's generator. revision: of an id. Only an id reaches for the network.
    Raises SubcompressError for a place without a configuration, and whatever else transformers does not take.
    """
    if task not in TASKS:
        raise SubcompressError(f"task must be one of {', '.join(TASKS)}; got {task!r}{suggestion(task, TASKS)}")
    if labels is not None and not 1 <= labels <= 1 << 20:
        raise SubcompressError(f"labels must be between 1 and 2^20; got {labels}")
    with _transformers(place, f"as a network for {task}") as library:
        where, options = _where(place, revision)
        config = library.AutoConfig.from_pretrained(where, **options)
        if labels is not None and task == "classification" and config.num_labels != labels:
            config.num_labels = labels
        if getattr(config, "pad_token_id", None) is None:  # a classifier looks for the last token before the padding
            config.pad_token_id = getattr(config, "eos_token_id", None)
        auto = getattr(library, TASKS[task])
        if weights and (not Path(where).is_dir() or any((Path(where) / name).is_file() for name in WEIGHTS)):
            made = auto.from_pretrained(
                where, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **options
            )
        else:
            made = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    assert isinstance(made, nn.Module)
    return made


def load_tokenizer(place: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a folder or of an id on the Hub. Raises SubcompressError."""
    with _transformers(place, "as a tokenizer") as library:
        where, options = _where(place, revision)
        found = library.AutoTokenizer.from_pretrained(where, **options)
        if len(found) <= len(found.all_special_tokens):  # what transformers makes where there are no words
            raise SubcompressError(
                f"a tokenizer has words; {place} has none: give its tokenizer.json or vocabulary too"
            )
        return found


def labels_of(layout: Layout, place: str | Path, *, revision: str | None = None) -> int | None:
    """Return the number of classes for which the network of `place` has the tensors of `layout`; None if there is
    none."""
    with torch.device("meta"):
        two, three = (
            Layout.of(load_model(place, labels=n, weights=False, revision=revision).state_dict()) for n in (2, 3)
        )
    sizes = {spec.name: spec.shape for spec in layout}
    for a, b in zip(two, three, strict=True):
        for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)):
            if (m, n) == (2, 3) and len(shape := sizes.get(a.name, ())) == len(a.shape):
                return shape[axis]
    return None


def _where(place: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return the arguments for transformers. Raises SubcompressError for a missing folder."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise SubcompressError(f"a revision is of an id on the Hub; {place} is a folder: leave @{revision} out")
        if not (folder / "config.json").is_file():
            raise SubcompressError(f"a network of transformers has a config.json; {place} has none: check the folder")
        return str(folder), {"local_files_only": True, "trust_remote_code": False}
    if folder.exists() or not re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", str(place)):
        raise SubcompressError(f"{place} is no folder, and no id on the Hub, owner/name: check the path")
    return str(place), {"revision": revision or "main", "trust_remote_code": False}


@contextmanager
def _transformers(place: str | Path, what: str) -> Iterator[Any]:
    """Provide the library without progress bars, reports and warnings, and its exceptions as one line."""
    try:
        import transformers
    except ImportError as e:
        raise SubcompressError(
            f"networks of transformers need it, and it is not here ({one_line(e)}): pip install 'transformers>=5'"
        ) from e
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    except SubcompressError:
        raise
    except Exception as e:
        if memory_ran_out(e):
            raise
        raise SubcompressError(f"transformers does not load {place} {what} ({one_line(e)}): check it") from e
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
