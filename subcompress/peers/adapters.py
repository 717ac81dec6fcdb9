"""Adapters of PEFT on the network as it starts: UniLoRA and VeRA, from a seeded base that is not counted."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from subcompress.peers.bench import Bench, Row, SkippedError, fails, joined
from subcompress.training import seed_everything

UNILORA_LR, VERA_LR = 1e-1, 1e-2
"""Adam's largest steps: adapters start at or near zero and have far to go from a random base."""

HEADER = 128
"""Bytes of the safetensors header of a UniLoRA adapter."""


def unilora(bench: Bench) -> list[Row]:
    """Uni-LoRA (arXiv:2506.00799): one vector, one-hot projected onto the LoRA weights; as long as our bytes hold."""
    peft, linear = _peft(bench)
    length = max(4, (bench.size - HEADER) // 4)
    settings = {"r": 4, "theta_d_length": length, "target_modules": linear}
    return [
        _adapter(
            bench,
            peft,
            "UniLoraConfig",
            settings,
            "PEFT UniLoRA",
            UNILORA_LR,
            f"theta_d of {length} on {len(linear)} linear layers",
        )
    ]


def vera(bench: Bench) -> list[Row]:
    """VeRA (arXiv:2310.11454): vectors on frozen random matrices that are not saved."""
    peft, linear = _peft(bench)
    settings = {"r": 4, "target_modules": linear, "save_projection": False}
    return [
        _adapter(bench, peft, "VeraConfig", settings, "PEFT VeRA", VERA_LR, f"rank 4 on {len(linear)} linear layers")
    ]


def _peft(bench: Bench) -> tuple[Any, list[str]]:
    with fails("peft cannot be imported (pip install peft)"):
        import peft
    linear = [name for name, m in bench.model.named_modules() if isinstance(m, nn.Linear) and name]
    if not linear:
        raise SkippedError("PEFT's adapters sit on linear layers, and this network has none")
    return peft, linear


def _adapter(bench: Bench, peft: Any, config: str, settings: dict[str, Any], name: str, lr: float, note: str) -> Row:
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
