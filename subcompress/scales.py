"""How large a tensor's weights start: its usual standard deviation, from its fan-in."""

from __future__ import annotations

import math

from torch import nn

from subcompress.errors import SubcompressError


def standard_deviations(module: nn.Module) -> dict[str, float]:
    """Parameter name -> 1 / sqrt(3 fan_in), what torch's linear and convolutional layers start with
    (He et al. 2015, arXiv:1502.01852, with a = sqrt(5)). A bias takes its weight's.

    Raises SubcompressError for a parameter without a fan-in: this version fits linear and convolutional layers.
    """
    fan_in = {name: math.prod(p.shape[1:]) for name, p in module.named_parameters() if p.ndim >= 2}
    found = {}
    for name, _ in module.named_parameters():
        weight = name if name in fan_in else f"{name.rpartition('.')[0]}.weight".removeprefix(".")
        if not fan_in.get(weight):
            raise SubcompressError(
                f"fit knows how weights and biases of linear and convolutional layers start; {name} is neither: "
                "leave it out of the model"
            )
        found[name] = 1 / math.sqrt(3 * fan_in[weight])
    return found
