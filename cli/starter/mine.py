"""Your network and your data. `subcompress fit --recipe recipe.toml -o run` trains the one on the other.

Both functions are examples that run as they are: replace what they return.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset


def network() -> nn.Module:
    """Build the network. It is called several times under different seeds: draw its weights at random, as usual."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def data() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return training, validation and test data: data sets of (input, label), or DataLoaders.

    Validation chooses the file. The test data are read once, at the end.
    """
    drawn = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (1200,), generator=drawn)
    images = torch.randn(1200, 1, 16, 16, generator=drawn)
    for image, label in zip(images, labels.tolist(), strict=True):  # a bright row, in one of three places
        image[0, 3 + 4 * label] += 1.5
    parts = [slice(0, 800), slice(800, 1000), slice(1000, 1200)]
    train, validation, test = (TensorDataset(images[part], labels[part]) for part in parts)
    return train, validation, test
