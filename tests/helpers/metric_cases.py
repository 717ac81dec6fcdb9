"""Metrics, and what they are to give."""

import math

import numpy as np
import torch

N = 2_500  # more than one batch of an evaluation


def generator():
    return torch.Generator().manual_seed(0)


def correlation(outputs, y):
    return np.corrcoef(outputs.numpy().ravel(), y.numpy().ravel())[0, 1]


def outputs_of(module, split):
    with torch.no_grad():
        return module.eval()(split.x)


class Counting:
    """A metric of one's own that accumulates: the largest error; it knows how often it was used."""

    resets = 0

    def __init__(self):
        self.worst, self.updates = 0.0, 0

    def reset(self):
        self.worst, self.updates = 0.0, 0

    def update(self, outputs, y):
        self.updates += 1
        self.worst = max(self.worst, float((outputs - y).abs().max()))

    def compute(self):
        assert self.updates == math.ceil(N / 1000)
        return self.worst


def named(f):
    f.__name__ = "f"
    return f


class Sizes(Counting):
    def update(self, outputs, y):
        self.updates += 1
        self.worst += 1
