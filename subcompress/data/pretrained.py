"""Networks and tokenizers of transformers, from a folder or the Hub: `pip install '.[transformers]'` in a clone.

Weights are read as safetensors or with `weights_only`; code that comes with a model is never run.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subcompress.errors import SubcompressError, explaining, one_line
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import Layout

TASKS = {
    "classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "features": "AutoModel",
}
"""Task -> the class of transformers that makes its network. Any other class is given by its own name, which begins
with `AUTO`."""

AUTO = "AutoModelFor"

LABELED = ("classification", "token-classification", "image-classification")
"""The tasks whose networks have an output for each label."""

DTYPES = ("float32", "bfloat16", "float16", "auto")
"""The dtypes that weights can be held in; auto: that of the folder."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The names of the files of weights in a folder."""


def load_model(
    place: str | Path,
    task: str = "classification",
    *,
    labels: int | None = None,
    weights: bool = True,
    revision: str | None = None,
    dtype: str = "float32",
) -> nn.Module:
    """The network of a folder, or of an id on the Hub, with transformers' own names in its state dict.

    Args:
        place: The folder or the id. Only an id reaches for the network.
        task: One of `TASKS`, or the name of a class of transformers, AutoModelFor...
        labels: The number of classes, by default that of the configuration.
        weights: Whether to load weights if there are any. Tensors that they lack, such as a new head, start at random
            from torch's generator, and so do all tensors if nothing is loaded.
        revision: The revision of an id.
        dtype: One of `DTYPES`. In 16 bits small moves of a weight are lost.

    Raises:
        SubcompressError: A place without a configuration, and whatever else transformers does not take.
    """
    if dtype not in DTYPES:
        raise SubcompressError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}{suggestion(dtype, DTYPES)}")
    if labels is not None and not 1 <= labels <= 1 << 20:
        raise SubcompressError(f"labels must be between 1 and 2^20; got {labels}")
    check_task(task)
    with _transformers(place, f"as a network for {task}") as library:
        where, options = _where(place, revision)
        config = library.AutoConfig.from_pretrained(where, **options)
        if labels is not None and task in LABELED and config.num_labels != labels:
            config.num_labels = labels
        if getattr(config, "pad_token_id", None) is None:  # a classifier looks for the last token before the padding
            config.pad_token_id = getattr(config, "eos_token_id", None)
        auto = getattr(library, _class_of(task, library))
        held: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
        if weights and (not Path(where).is_dir() or any((Path(where) / name).is_file() for name in WEIGHTS)):
            made = auto.from_pretrained(where, config=config, dtype=held, ignore_mismatched_sizes=True, **options)
        else:
            held = _own_dtype(config) if dtype == "auto" else held
            made = auto.from_config(config, dtype=held, trust_remote_code=False)
    assert isinstance(made, nn.Module)
    return made


def load_tokenizer(place: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a folder or of an id on the Hub. Raises SubcompressError."""
    with _transformers(place, "as a tokenizer") as library:
        where, options = _where(place, revision)
        found = library.AutoTokenizer.from_pretrained(where, **options)
        if len(found) <= len(found.all_special_tokens):  # what transformers makes where there are no words
            raise SubcompressError(
                f"the tokenizer in {place} has no vocabulary: add its tokenizer.json or vocabulary files"
            )
        return found


def load_processor(place: str | Path, *, revision: str | None = None) -> Any:
    """The image processor of a folder or of an id on the Hub. Raises SubcompressError."""
    with _transformers(place, "as an image processor") as library:
        where, options = _where(place, revision)
        return library.AutoImageProcessor.from_pretrained(where, **options)


def check_task(task: str) -> None:
    """Raise SubcompressError for a task that cannot be one of any version of transformers."""
    if task not in TASKS and not task.startswith(AUTO):
        raise SubcompressError(
            f"task must be one of {', '.join(TASKS)}, or a class of transformers, {AUTO}...; got "
            f"{task!r}{suggestion(task, TASKS)}"
        )


def _class_of(task: str, library: Any) -> str:
    """The name of the class that makes networks for a task. Raises SubcompressError."""
    name = TASKS.get(task, task)
    if not hasattr(library, name):
        known = [n for n in dir(library) if n.startswith(AUTO)]
        close = suggestion(name, known) or f": it has {', '.join(known[:3])} and {len(known) - 3} more"
        raise SubcompressError(f"transformers {library.__version__} has no {name}{close}")
    return name


def _own_dtype(config: Any) -> torch.dtype:
    """The dtype that a configuration says of its weights, float32 without."""
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def context_of(place: str | Path, *, revision: str | None = None) -> int | None:
    """Return the most tokens that the network of a place takes; None if its configuration does not say.

    Raises SubcompressError as `load_model` does.
    """
    with _transformers(place, "as a configuration") as library:
        where, options = _where(place, revision)
        config = library.AutoConfig.from_pretrained(where, **options)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((int(n) for n in known if isinstance(n, int) and n > 1), None)


def dtype_of(layout: Layout) -> str:
    """Return which of `DTYPES` most floats of a file have, for the network that it is for."""
    names = {"BF16": "bfloat16", "F16": "float16"}
    sizes = Counter[str]()
    for spec in layout:
        sizes[names.get(spec.dtype, "float32")] += spec.size
    return max(sizes, key=sizes.__getitem__, default="float32")


def task_of(layout: Layout, place: str | Path, *, revision: str | None = None) -> str | None:
    """Return the task for which the network has the tensors of `layout`; None if there is none.

    Raises SubcompressError if the network cannot be made.
    """
    dtype = dtype_of(layout)
    wanted = {spec.name: spec.shape for spec in layout}
    for task in _likely(place, revision):
        labels = labels_of(layout, place, task, revision=revision) if task in LABELED else None
        if task in LABELED and labels is None:
            continue
        try:
            with torch.device("meta"):
                made = load_model(place, task, labels=labels, weights=False, revision=revision, dtype=dtype)
        except SubcompressError:  # no network of this kind is for this task
            continue
        if {spec.name: spec.shape for spec in Layout.of(made.state_dict())} == wanted:
            return task
    return None


def _likely(place: str | Path, revision: str | None) -> list[str]:
    """The tasks, that of the configuration's own network first: to try one takes time."""
    with _transformers(place, "as a configuration") as library:
        where, options = _where(place, revision)
        own = getattr(library.AutoConfig.from_pretrained(where, **options), "architectures", None) or [""]
    return sorted(TASKS, key=lambda task: not str(own[0]).endswith(TASKS[task].removeprefix("AutoModel") or "Model"))


def labels_of(
    layout: Layout, place: str | Path, task: str = "classification", *, revision: str | None = None
) -> int | None:
    """Return the number of classes for which the network of `place` has the tensors of `layout`; None if there is
    none, or no network of this kind is for the task."""
    try:
        with torch.device("meta"):
            two, three = (
                Layout.of(load_model(place, task, labels=n, weights=False, revision=revision).state_dict())
                for n in (2, 3)
            )
    except SubcompressError:  # no network of this kind is for this task, or `load_model` says what is wrong
        return None
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
            raise SubcompressError(
                f"{place} is a folder, and only an ID on the Hub has revisions: leave @{revision} out"
            )
        if not (folder / "config.json").is_file():
            raise SubcompressError(f"{place} has no config.json, which a transformers model needs: check the folder")
        return str(folder), {"local_files_only": True, "trust_remote_code": False}
    if folder.exists() or not re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", str(place)):
        raise SubcompressError(f"{place} is neither a folder nor an ID on the Hub (ORG/NAME): check the path")
    return str(place), {"revision": revision or "main", "trust_remote_code": False}


def _transformers(place: str | Path, what: str) -> AbstractContextManager[Any]:
    """Provide the library to load a place as something."""
    return library(
        "networks of transformers need it", lambda e: f"does not load {place} {what} ({one_line(e)}): check it"
    )


@contextmanager
def library(need: str, line: Callable[[Exception], str]) -> Iterator[Any]:
    """Provide transformers without progress bars, reports and warnings.

    need: what to say first where it is not installed. line: what to say, after its name, of an exception of the
    library. Raises SubcompressError for both.
    """
    try:
        import transformers
    except ImportError as e:
        raise SubcompressError(f"{need}, and it is not here ({one_line(e)}): pip install 'transformers>=5'") from e
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(), explaining(lambda e: f"transformers {line(e)}"):
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
