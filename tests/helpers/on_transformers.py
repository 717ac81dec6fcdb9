"""Networks of transformers of a few thousand weights in folders, and files on them that were made by hand."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import with_digest

from subcompress import format
from subcompress.base import attach_base, open_base
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Entry, Group, Record, Tied, Unchanged
from subcompress.operators import HadamardBlocks
from subcompress.tensors.layout import Layout

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def tiny_bert(folder: Path, **settings: Any) -> Path:
    """A headless BERT with weights and a tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=32, **settings)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, **settings: Any) -> Path:
    """A Llama with weights in bfloat16, in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, intermediate_size=32, **settings)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="8KB")
    return folder


def network_of(folder: Path, auto: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """The network of a folder, by the name of a class."""
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, dtype=dtype, **settings).eval()


def record_on(
    module: torch.nn.Module, source: Any, moved: Collection[str], facts: Facts | None = None, name: str | None = None
) -> Record:
    """A fine-tune of a network on a base: tensors of these patterns and new ones move, the others are the base's."""
    state = module.state_dict(keep_vars=True)
    base = attach_base(open_base(source, name), module)
    new = {n: t for n, t in state.items() if n not in base}
    layout = Layout((*base.layout, *Layout.of(new)))
    first: dict[int, int] = {}
    entries: list[Entry] = []
    for i, spec in enumerate(layout):
        if (index := first.setdefault(id(state[spec.name]), i)) != i:
            entries.append(Tied(index))
        elif spec.name in base and not any(fnmatchcase(spec.name, pattern) for pattern in moved):
            entries.append(Unchanged())
        else:
            entries.append(Coded(2.0**-6, based=spec.name in base))
    D = sum(spec.reals for spec, entry in zip(layout, entries, strict=True) if isinstance(entry, Coded))
    z = np.random.default_rng(3).integers(-7, 8, min(D, 30)).astype(np.int32)
    group = Group(HadamardBlocks.sized(D, len(z), 3, K=min(4, D - 1)), 4, z)
    return with_digest(Record(3, layout, (group,), tuple(entries), facts=facts or Facts(), base=base))


def saved(record: Record, path: Path) -> Path:
    """The record as a file."""
    format.save(record, path)
    return path


def settings_in(folder: Path) -> dict[str, Any]:
    """The configuration in a folder."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


__all__ = ["network_of", "record_on", "saved", "settings_in", "tiny_bert", "tiny_llama"]
