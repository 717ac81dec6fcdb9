"""A folder that `from_pretrained` of transformers loads as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.api.formats.companions import copy_companions
from subcompress.api.formats.shards import write_weights
from subcompress.format.facts import Facts
from subcompress.format.record import Record, Tied, Unchanged
from subcompress.rebuild.dense import written_layout
from subcompress.rebuild.filling import require_base
from subcompress.remote import CONFIG
from subcompress.tensors.layout import Layout, raw_bytes

if TYPE_CHECKING:
    from subcompress.api.formats.networks import Found

DROPPED = ("auto_map", "quantization_config", "torch_dtype", "_name_or_path", "num_labels")
"""Settings that do not hold for the folder: code does not come along, and weights are not quantized."""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""The names of dtypes in a configuration."""


def write(record: Record, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Write weights, configuration and tokenizer. Raises SubcompressError if the configuration is missing or no
    class of transformers has the tensors."""
    settings = copy_companions(record, wanted, folder)
    from subcompress.api.formats.networks import find_network  # which imports torch

    found = find_network(record, folder)
    tied, untied = _tied(record, found)
    layout = written_layout(record.layout, wanted.dtype)
    settings = settings_of(settings, found, record.facts, layout)
    if untied:
        settings["tie_word_embeddings"] = False
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    numbers = [i for i, spec in enumerate(record.layout) if spec.name not in tied]
    write_weights(record, numbers, wanted, folder)
    return {"architecture": found.name}


def settings_of(settings: dict[str, Any], found: Found, facts: Facts, layout: Layout) -> dict[str, Any]:
    """Return the configuration of a network with these tensors and labels. settings: that of its base."""
    config: Any = found.module.config
    kept = {key: value for key, value in settings.items() if key not in DROPPED}
    sizes = [(sum(s.nbytes for s in layout if s.dtype == name), spelled) for name, spelled in DTYPES.items()]
    kept |= {"architectures": [found.name], "dtype": max(sizes)[1]}
    kept |= {key: value for key, value in found.changes.items() if key != "num_labels"}
    if found.name.endswith("Classification"):
        kept |= _labels(config.num_labels, facts.labels, "num_labels" in found.changes or "num_labels" in settings)
        if kept.get("pad_token_id") is None and isinstance(eos := kept.get("eos_token_id"), int):
            kept["pad_token_id"] = eos  # a classifier looks for the last token before the padding
    return kept


def _labels(n: int, names: Sequence[str], anew: bool) -> dict[str, Any]:
    """The settings for the names of n labels. anew: whether the labels of the base do not apply."""
    if len(names) != n:
        if not anew:
            return {}
        names = [f"LABEL_{i}" for i in range(n)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _tied(record: Record, found: Found) -> tuple[set[str], bool]:
    """The names of tensors that loading ties to others, and whether some that the class ties have values of their
    own."""
    ties = found.ties
    equal = {name for name, source in ties.items() if _same(record, name, source)}
    return equal, len(equal) < len(ties)


def _same(record: Record, one: str, other: str) -> bool:
    """Whether two tensors have the same values because the file ties them, or because both are the base's."""
    numbers = {spec.name: i for i, spec in enumerate(record.layout)}
    a, b = numbers[one], numbers[other]
    entries = record.entries
    first = [entry.index if isinstance(entry := entries[i], Tied) else i for i in (a, b)]
    if first[0] == first[1]:
        return True
    if not all(isinstance(entries[i], Unchanged) for i in first):
        return False
    base = require_base(record)
    return raw_bytes(base.values(one)) == raw_bytes(base.values(other))


FORMAT = Format("transformers", "", write, ("dtype", "shard_size", "files"))
