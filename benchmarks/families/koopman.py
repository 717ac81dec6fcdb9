"""A Koopman autoencoder (Lusch et al. 2018, arXiv:1712.09707): a nonlinear system made linear by an encoder.

Here because the matrix of the linear dynamics starts at the identity: a structure that a random start loses, in a
matrix that is applied eight times in a row, and of which training changes every entry.
"""

from __future__ import annotations

from families.examples import example
from families.family import Family

_TASK = example("koopman")
make_net, load, relative_l2 = _TASK.make_net, _TASK.load, _TASK.relative_l2

FAMILY = Family("koopman", make_net, load, d=500, epochs=25, loss="mse", metric=relative_l2, minimize=True)
