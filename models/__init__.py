"""Reference networks, one a file. A new one is one file and one line here."""

from collections.abc import Callable

from torch import nn

from subcompress_models.cifar_lenet import CifarLeNet
from subcompress_models.lenet import LeNet
from subcompress_models.lenet5 import LeNet5
from subcompress_models.mlp import MLP

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "lenet5": LeNet5,
    "cifar-lenet": CifarLeNet,
}

__all__ = ["MLP", "MODELS", "CifarLeNet", "LeNet", "LeNet5"]
