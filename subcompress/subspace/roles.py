"""The roles of tensors in a network on a base, and how far those of each role move."""

from __future__ import annotations

import torch
from torch import nn

MOVES = {"norms": 0.057, "biases": 0.057, "heads": 0.057, "embeddings": 0.002, "matrices": 0.002}
"""Role -> how far values of a base move; without a base, the standard deviation of the start takes this place."""

FACTORS = 0.02, 0.02
"""The same for the factors of a matrix: for the one that starts at random, and for the one that starts at zero."""

SKETCHED = 0.002
"""The same for the matrix that is added between directions of the base."""


def roles_of(module: nn.Module) -> dict[str, str]:
    """Parameter -> its role. norms: weights and biases of normalization layers; biases: all others; embeddings: tables;
    heads: what the last layer with weights holds; matrices: the rest. A tied parameter has the role of its first
    name."""
    found: dict[str, str] = {}
    seen: dict[int, str] = {}
    last = ""
    for prefix, child in module.named_modules():
        for leaf, parameter in child.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if is_norm(child):
                role = "norms"
            elif isinstance(child, (nn.Embedding, nn.EmbeddingBag)) or "embedding" in leaf:
                role = "embeddings"
            else:
                role = "biases" if parameter.ndim < 2 else "matrices"
                last = prefix
            found[name] = seen.setdefault(id(parameter), role)
    return {n: "heads" if n.rpartition(".")[0] == last and r in ("biases", "matrices") else r for n, r in found.items()}


def is_norm(module: nn.Module) -> bool:
    """Whether it normalizes: torch's layers, and others that are called so."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or type(module).__name__.lower().endswith("norm")


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer, of torch or as GPT-2 has them, transposed."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is a linear layer as GPT-2 has them: what it reads are the rows of its weight."""
    return type(module).__name__ == "Conv1D"


def linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The name of each weight of a linear layer -> its layer; a layer that several modules share once."""
    found: dict[str, nn.Module] = {}
    for prefix, child in module.named_modules():
        weight = child._parameters.get("weight") if is_linear(child) else None
        if weight is not None and weight.ndim == 2 and weight.is_floating_point():
            found[f"{prefix}.weight" if prefix else "weight"] = child
    return found


def looks_trained(module: nn.Module) -> bool:
    """Whether a network's weights are not those of an initializer: its norms have moved, or the rows of most of its
    large matrices differ in length by far more than those of independent values would."""
    telling = untelling = 0
    for child in module.modules():
        tracked = getattr(child, "num_batches_tracked", None)
        if isinstance(tracked, torch.Tensor) and not tracked.is_meta and int(tracked) > 0:
            return True
        w = getattr(child, "weight", None)
        if not isinstance(w, torch.Tensor) or w.is_meta or not w.is_floating_point():
            continue
        if is_norm(child):
            if w.numel() >= 8:
                moved = float(w.detach().double().std()) > 1e-6
                telling, untelling = telling + moved, untelling + (not moved)
        elif w.ndim >= 2 and w.shape[0] >= 16 and (n := w[0].numel()) >= 64:
            size = w.detach()[:512].flatten(1).double().square().mean(1)
            # Of n independent normal values the mean square differs by sqrt(2 / n) of itself from row to row.
            spread = float(size.std() / size.mean().clamp_min(1e-300))
            far = spread > 3 * (2 / n) ** 0.5
            telling, untelling = telling + far, untelling + (not far)
    return telling >= 2 and telling > untelling
