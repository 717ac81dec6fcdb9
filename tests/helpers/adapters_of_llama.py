"""A tiny Llama with an adapter, for tests of PEFT."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llama import network

TOKENS = torch.tensor([[3, 9, 6, 10, 4, 9, 7], [5, 9, 11, 8, 10, 3, 9]])


def adapted(seed: int = 0, d: int = 20, **options: Any) -> Any:
    """A fresh tiny Llama with an adapter whose coordinates have moved."""
    import peft

    from subcompress.peft import SubspaceConfig

    model = peft.get_peft_model(network(), SubspaceConfig(d=d, seed=seed, task_type="CAUSAL_LM", **options))
    move(model, seed)
    return model


def move(model: Any, seed: int, adapter: str = "default") -> None:
    """Give an adapter random coordinates."""
    z = model.base_model.subcompress_layer.adapters[adapter].z
    with torch.no_grad():
        z.copy_(torch.randn(len(z), generator=torch.Generator().manual_seed(seed)))


def logits(model: Any) -> torch.Tensor:
    """The answers, as evaluation gives them."""
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found
