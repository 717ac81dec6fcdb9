"""An LSTM (Hochreiter, Schmidhuber 1997) whose forget gates start at 1 (Jozefowicz et al. 2015), on rows of digits.

Here because one vector of biases holds a chosen constant for one gate and zeros for the others, and because the layer
keeps a list of its weights beside its parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from families.data import digits
from families.family import Family, Splits, accuracy


class Recurrent(nn.Module):
    """Eight rows of eight pixels, (N, 8, 8) -> (N, 10), from the last state."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)
        weights = dict(self.lstm.named_parameters())
        nn.init.xavier_uniform_(weights["weight_ih_l0"])
        nn.init.orthogonal_(weights["weight_hh_l0"])
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])
        weights["bias_ih_l0"].data[width : 2 * width] = 1.0  # input, forget, cell, output

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


def load() -> Splits:
    """The digits row by row."""
    return digits(8, 8)


make_net = Recurrent

FAMILY = Family("recurrent", make_net, load, d=450, epochs=15, metric=accuracy)
