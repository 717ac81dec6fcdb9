"""Layers that keep no activations and run once more in the backward pass: gradient checkpointing, of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from subcompress.errors import SubcompressError, explaining, one_line
from subcompress.subspace.copying import copied

KINDS = ("activation", "gradient")
"""How the names in transformers begin, in newer and in older versions."""


def checkpointed(model: nn.Module) -> nn.Module:
    """A copy whose layers are checkpointed in training, in the memory of the model's parameters.

    Raises SubcompressError for a network that has no method `activation_checkpointing_enable` (before transformers
    5.20 `gradient_checkpointing_enable`), or refuses it.
    """
    found = copied(model, shared={name for name, _ in model.named_parameters(remove_duplicate=False)})
    kind = next((k for k in KINDS if callable(getattr(found, f"{k}_checkpointing_enable", None))), None)
    if kind is None:
        raise SubcompressError(
            f"--checkpointing needs a transformers model; {type(model).__name__} has no {KINDS[1]}_checkpointing_"
            "enable: leave it out, or give --accumulate"
        )
    refused = f"{type(model).__name__} refuses --checkpointing"
    with explaining(lambda e: f"{refused} ({one_line(e, 160)}): leave it out, or give --accumulate"):
        # Parameters of a subspace are no leaves, which the reentrant kind loses the gradients of.
        getattr(found, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
    config: Any = getattr(found, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # each pass would warn that it is not used
    return found


__all__ = ["checkpointed"]
