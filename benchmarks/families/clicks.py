"""A factorization machine (Rendle 2010; Guo et al. 2017, arXiv:1703.04247) that predicts clicks from hashed ids.

Here because nearly all weights are rows of embedding tables that few examples read, started at a deviation of 0.01
and moved by many times as much; and because the area under the ROC curve is of a whole split.
"""

from __future__ import annotations

from families.examples import example
from families.family import Family

_TASK = example("clicks")
make_net, load, auc = _TASK.make_net, _TASK.load, _TASK.auc

FAMILY = Family("clicks", make_net, load, d=500, epochs=5, batch_size=64, loss="bce", metric=auc)
