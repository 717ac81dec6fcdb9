"""A Fourier neural operator in one dimension (Li et al. 2021, arXiv:2010.08895) that solves -u'' = f on a circle.

Here because its complex weights start at scale * rand, of one sign and tiny: what is known of a start by its standard
deviation says little of how far training moves it.
"""

from __future__ import annotations

from families.examples import example
from families.family import Family

_TASK = example("fno")
make_net, load, loss, relative_l2 = _TASK.FNO, _TASK.load, _TASK.loss, _TASK.relative_l2

FAMILY = Family(
    "fno",
    make_net,
    load,
    d=800,
    epochs=12,
    loss=loss,
    metric=relative_l2,
    minimize=True,
    goal=0.015,
    steps=(2e-3, 5e-3),
)
