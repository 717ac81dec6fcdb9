"""A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538), one of which is never asked.

Here because real networks hold parameters that no loss reaches: their gradient is none, and nothing is known of how
far they move.
"""

from __future__ import annotations

from torch import nn

from families.data import digits
from families.examples import example
from families.family import Family, accuracy


def make_net() -> nn.Module:
    """Four experts, of which the gate knows three."""
    return example("experts").Experts(known=3)


load = digits

FAMILY = Family("experts", make_net, load, d=600, epochs=20, metric=accuracy)
