"""Families of networks as their authors write them, one a file. A new one is one file and one line here."""

from families import (
    bag,
    batch_statistics,
    cached,
    checkpointed,
    chosen,
    clicks,
    correlation,
    denoiser,
    experts,
    fno,
    koopman,
    layer_scale,
    lenet,
    masked_lm,
    orthogonal,
    recurrent,
    s4d,
    scalar_head,
    spectral_norm,
    tiny_bert,
    weight_norm,
)
from families.family import Family

_MODULES = (
    fno,
    layer_scale,
    orthogonal,
    scalar_head,
    chosen,
    bag,
    tiny_bert,
    cached,
    checkpointed,
    batch_statistics,
    correlation,
    s4d,
    weight_norm,
    spectral_norm,
    koopman,
    clicks,
    denoiser,
    masked_lm,
    recurrent,
    lenet,
    experts,
)

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
"""The families by name, in the order of the table."""

__all__ = ["FAMILIES", "Family"]
