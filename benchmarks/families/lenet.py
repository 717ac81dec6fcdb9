"""LeNet (LeCun et al. 1998) for images of 8 x 8 pixels: two convolutions with pooling, then three linear layers.

Here as the network that everything is known of: its starts are torch's own.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from families.data import digits
from families.family import Family, Splits, accuracy


class LeNet(nn.Module):
    """(N, 1, 8, 8) -> (N, 10), D = 9,758."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1 = nn.Linear(64, 84)
        self.fc2 = nn.Linear(84, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.conv1(x).relu(), 2)  # (N, 8, 4, 4)
        x = max_pool2d(self.conv2(x).relu(), 2)  # (N, 16, 2, 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def load() -> Splits:
    """The digits as images."""
    return digits(1, 8, 8)


make_net = LeNet

FAMILY = Family("lenet", make_net, load, d=600, epochs=15, metric=accuracy)
