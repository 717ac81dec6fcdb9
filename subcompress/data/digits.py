"""The 1,797 handwritten digits of 8x8 that scikit-learn ships (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI 1998; CC BY 4.0), embedded: the demo and the tests need no download.

Each pixel becomes 3x3, with a border of 2, so that every 28x28 network reads them. Every fifth image is the test
split, the one after it validation.
"""

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from subcompress.data.splits import Data, image_split
from subcompress.format.facts import Facts

FACTS = Facts(input_shape=(1, 28, 28), mean=(0.2244,), std=(0.3494,), labels=tuple("0123456789"))


def load(folder: Path | None = None) -> Data:
    """1,077 training, 360 validation and 360 test images; `folder` is not used."""
    with resources.files(__package__).joinpath("digits.npz").open("rb") as f, np.load(f) as z:
        images, labels = torch.from_numpy(z["images"]), torch.from_numpy(z["labels"])
    images = (images.float() * (255 / 16)).round().to(torch.uint8)
    images = images.repeat_interleave(3, 1).repeat_interleave(3, 2)  # (1797, 24, 24)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2)).unsqueeze(1)  # (1797, 1, 28, 28)
    turn = torch.arange(len(labels)) % 5
    test, validation, train = (image_split(images[k], labels[k], FACTS) for k in (turn == 0, turn == 1, turn > 1))
    return Data(train, validation, test, FACTS)
