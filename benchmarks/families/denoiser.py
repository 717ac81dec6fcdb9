"""A denoising diffusion model (Ho et al. 2020, arXiv:2006.11239): a network that predicts the noise in a digit.

Here because its loss draws noise in every batch, and its target has no best constant answer to be told from.
"""

from __future__ import annotations

from families.examples import example
from families.family import Family

_TASK = example("denoiser")
make_net, load, noise_error = _TASK.make_net, _TASK.load, _TASK.noise_error

FAMILY = Family("denoiser", make_net, load, d=800, epochs=20, loss=noise_error, minimize=True)
