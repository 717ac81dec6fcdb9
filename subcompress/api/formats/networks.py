"""Finding the class of transformers that has the tensors of a record, on the meta device: no weights are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subcompress.data.pretrained import library
from subcompress.errors import SubcompressError, one_line
from subcompress.format.record import Record
from subcompress.tensors.layout import Layout

AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForImageTextToText",
    "AutoModel",
)
"""Classes that are tried after the one that the configuration names. A network without a head comes last."""


@dataclass(frozen=True)
class Found:
    """A network on the meta device with the tensors of a record. changes: settings of its configuration that differ
    from those given."""

    module: nn.Module
    changes: dict[str, int]

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def ties(self) -> dict[str, str]:
        """The name of each tensor that the class ties to another -> the name of the other."""
        return dict(getattr(self.module, "all_tied_weights_keys", None) or {})


def quiet(what: str) -> AbstractContextManager[Any]:
    """Provide transformers for a step of writing a format. what: the step, for the message where it fails."""
    return library(
        "this format needs transformers", lambda e: f"cannot {what} ({one_line(e)}): check the folder of the base"
    )


def find_network(record: Record, folder: Path) -> Found:
    """Return the network of transformers that has the record's tensors. folder: with its configuration.

    The number of labels and of words are those of the tensors. Raises SubcompressError, naming the first difference to
    the class of the configuration, if no class has them.
    """
    with quiet("make a network of this configuration") as transformers:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        why = ""
        for kind in _classes(transformers, config):
            found, difference = _fitted(kind, transformers, record, folder)
            if found is not None:
                return found
            why = why or f"{kind.__name__} {difference}"
    raise SubcompressError(
        f"no transformers model of the type {config.model_type} has the tensors of the file ({why}): give the "
        "configuration of the network that was trained, with --model hf:DIR"
    )


def _classes(library: Any, config: Any) -> Iterator[type[nn.Module]]:
    """Yield the classes to try, each once."""
    named = [getattr(library, str(name), None) for name in config.architectures or ()]
    autos = [getattr(library, name)._model_mapping.get(type(config), None) for name in AUTO if hasattr(library, name)]
    kinds = [kind for found in (*named, *autos) for kind in (found if isinstance(found, tuple) else (found,))]
    for kind in dict.fromkeys(kinds):
        if isinstance(kind, type) and issubclass(kind, library.PreTrainedModel):
            yield kind


def _fitted(kind: Any, library: Any, record: Record, folder: Path) -> tuple[Found | None, str]:
    """Return the network of a class, made to the sizes of the record, or None and the first difference."""
    changes: dict[str, int] = {}
    for _ in range(2):
        config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        for name, value in changes.items():
            setattr(config, name, value)
        with torch.device("meta"):
            module = kind._from_config(config)
        difference, sizes = _compare(record.layout, module, config)
        if not difference:
            return Found(module, changes), ""
        if not sizes or changes:
            break
        changes = sizes
    return None, difference


def _compare(layout: Layout, module: nn.Module, config: Any) -> tuple[str, dict[str, int]]:
    """Return the first difference between a network and a layout, empty if there is none, and the settings that would
    fix all differences, if any would."""
    shapes = {spec.name: spec.shape for spec in layout}
    own = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    if missing := next((name for name in own if name not in shapes), None):
        return f"has {missing}, which the file lacks", {}
    if extra := next((name for name in shapes if name not in own), None):
        return f"lacks {extra}", {}
    settings: dict[str, int] = {}
    difference, fixed = "", True
    for name, shape in own.items():
        if shape == shapes[name]:
            continue
        difference = difference or f"has {name} {list(shape)}, the file {list(shapes[name])}"
        axes = [(a, b) for a, b in zip(shape, shapes[name], strict=False) if a != b]
        key = _setting(config, axes[0][0]) if len(axes) == 1 and len(shape) == len(shapes[name]) else None
        if key is None or settings.setdefault(key, axes[0][1]) != axes[0][1]:
            fixed = False
    return difference, settings if fixed else {}


def _setting(config: Any, size: int) -> str | None:
    """The setting of a configuration that an axis of that size may be of."""
    return next((key for key in ("num_labels", "vocab_size") if getattr(config, key, None) == size), None)
