"""Reference networks, one a file. A new one is one file and one line here."""

from collections.abc import Callable
from functools import partial

from torch import nn

from subcompress_models.cifar_lenet import CifarLeNet
from subcompress_models.conv3 import Conv3
from subcompress_models.frequencies import Frequencies
from subcompress_models.lenet import LeNet
from subcompress_models.lenet5 import LeNet5
from subcompress_models.mlp import MLP
from subcompress_models.mobilenet_v2 import MobileNetV2
from subcompress_models.oriented import Oriented
from subcompress_models.separable import Separable

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "lenet5": LeNet5,
    "cifar-lenet": CifarLeNet,
    "conv3-4-6-8": partial(Conv3, (4, 6, 8)),
    "conv3-8-12-16": partial(Conv3, (8, 12, 16)),
    "frequencies-32-48-64": partial(Frequencies, (32, 48, 64)),
    "mobilenet-v2": MobileNetV2,
    "oriented-10-16": partial(Oriented, (10, 16)),
    "oriented-6-8": partial(Oriented, (6, 8)),
    "separable-16-32-48-64": partial(Separable, (16, 32, 48, 64)),
}

__all__ = [
    "MLP",
    "MODELS",
    "CifarLeNet",
    "Conv3",
    "Frequencies",
    "LeNet",
    "LeNet5",
    "MobileNetV2",
    "Oriented",
    "Separable",
]
