"""Adapters of PEFT: LoRA, UniLoRA and VeRA, on the base of a file, or on the network as it starts, from a
seeded base that is not counted."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from subcompress.peers.bench import Bench, Row, SkippedError, fails, joined
from subcompress.subspace.seeds import seed_everything

LORA_LR, UNILORA_LR, VERA_LR = 1e-3, 5e-3, 5e-3
"""Adam's largest steps on a base."""

SEEDED_LR = {"UniLoraConfig": 1e-1, "VeraConfig": 1e-2}
"""Adam's largest steps on a random base, where adapters must move far from zero."""

HEADER = 128
"""Bytes of the safetensors header of a UniLoRA adapter."""

RANK = 8
"""On a base."""

UNILORA_SHARE = 0.16
"""23,040 numbers for the 147,456 of LoRA on RoBERTa-base, as in the paper."""


def lora(bench: Bench) -> list[Row]:
    """LoRA (arXiv:2106.09685), of rank 8 where PEFT puts it, else on every linear layer; and the new head."""
    if bench.record.base is None:
        raise SkippedError("LoRA is for networks on a base")
    peft, linear = _peft(bench)
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": linear}
    return [_adapter(bench, peft, "LoraConfig", settings, "PEFT LoRA", LORA_LR, f"rank {RANK} on {_where(linear)}")]


def unilora(bench: Bench) -> list[Row]:
    """Uni-LoRA (arXiv:2506.00799): one vector, one-hot projected onto the LoRA weights; as long as our bytes hold, and
    on a base as long as its authors choose."""
    peft, linear = _peft(bench)
    length = max(4, (bench.size - HEADER) // 4)
    if bench.record.base is not None:
        layers = [m for name, m in bench.model.named_modules() if name in linear and isinstance(m, nn.Linear)]
        weights = sum(4 * (m.in_features + m.out_features) for m in layers)  # of LoRA at rank 4
        length = round(UNILORA_SHARE * weights)
    settings = {"r": 4, "theta_d_length": length, "target_modules": linear}
    note = f"theta_d of {length} on {_where(linear)}"
    return [_adapter(bench, peft, "UniLoraConfig", settings, "PEFT UniLoRA", UNILORA_LR, note)]


def vera(bench: Bench) -> list[Row]:
    """VeRA (arXiv:2310.11454): vectors on frozen random matrices that are not saved."""
    peft, linear = _peft(bench)
    rank = 4 if bench.record.base is None else 256
    settings = {"r": rank, "target_modules": linear, "save_projection": False}
    return [_adapter(bench, peft, "VeraConfig", settings, "PEFT VeRA", VERA_LR, f"rank {rank} on {_where(linear)}")]


def _peft(bench: Bench) -> tuple[Any, list[str]]:
    """The library, and the linear layers: of attention those of queries and values, as is usual, where there is one."""
    with fails("peft cannot be imported (pip install peft)"):
        import peft
    linear = [n for n, m in bench.model.named_modules() if isinstance(m, nn.Linear) and n and n not in bench.new]
    if not linear:
        raise SkippedError("PEFT's adapters sit on linear layers, and this network has none")
    attention = [n for n in linear if n.rpartition(".")[2] in ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")]
    return peft, attention if bench.record.base is not None and attention else linear


def _where(linear: list[str]) -> str:
    return f"{len(linear)} linear layers"


def _adapter(bench: Bench, peft: Any, config: str, settings: dict[str, Any], name: str, lr: float, note: str) -> Row:
    if bench.record.base is None:
        lr = SEEDED_LR[config]
    elif bench.new:
        settings, note = settings | {"modules_to_save": bench.new}, f"{note}, and the new {', '.join(bench.new)}"
    seed_everything(bench.recipe.seed, 0)
    with warnings.catch_warnings(), fails("PEFT fails on this network"):
        warnings.simplefilter("ignore")
        module = peft.get_peft_model(copy.deepcopy(bench.model), getattr(peft, config)(**settings))
        seconds = bench.trained(module, name, lr=lr)
        folder = bench.folder / name.split()[-1].lower()
        module.save_pretrained(folder)
        merged = copy.deepcopy(module).merge_and_unload()
    size = Path(folder, "adapter_model.safetensors").stat().st_size
    value, judged = bench.value(merged)
    return Row(name, size, value, seconds, joined(note, "its settings file not counted", judged))
