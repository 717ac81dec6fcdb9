"""A network and data of your own, as `subcompress fit` takes them: two factories without arguments.

subcompress fit --model examples/own.py:make_net --data examples/own.py:load --max-drop 0.1 -o runs/own
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torch.utils.data import TensorDataset

import subcompress


class Net(nn.Module):
    """(N, 1, 28, 28) -> (N, 10): convolutions with batch norm; its running statistics travel in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 5, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 5, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = max_pool2d(self.norm2(self.conv2(x)).relu(), 2)
        return self.head(x.flatten(1))


def make_net() -> nn.Module:
    """The network, at its usual start."""
    return Net()


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Train, validation and test. Here the digits that come with the package; any three map-style datasets will do."""
    digits = subcompress.load_data("digits")
    return tuple(TensorDataset(split.x, split.y) for split in (digits.train, digits.validation, digits.test))
