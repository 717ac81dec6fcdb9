"""Prepares images for a network, and names its classes. Needs NumPy and Pillow, not torch: servers use it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from subcompress.errors import SubcompressError, one_line
from subcompress.format.facts import Facts

LENGTH = 512
"""The most tokens of a text if neither its tokenizer nor its network has a limit."""


class TooLargeError(SubcompressError):
    """An image with more pixels than are decoded."""


def takes_images(facts: Facts) -> bool:
    """Return whether a file says how an image is prepared for its network."""
    return len(facts.input_shape) == 3 and bool(facts.mean) and bool(facts.std)


def mode_of(facts: Facts) -> str:
    """Return Pillow's name for the colors that a network takes. Raises SubcompressError for neither gray nor color."""
    channels = facts.input_shape[0]
    if channels not in (1, 3):
        raise SubcompressError(
            f"the network takes {channels} channels, and an image has 1 or 3: give the numbers as .npy"
        )
    return "L" if channels == 1 else "RGB"


def opened(
    source: Path | IO[bytes], mode: str, name: str, *, most: int | None = None, formats: tuple[str, ...] | None = None
) -> Any:
    """Open an image and convert it to a mode.

    mode: of `mode_of`; name: how messages call the image; most: the most pixels, counted before anything is decoded;
    formats: the formats that are accepted, by Pillow's names. Raises SubcompressError if it cannot be read, and
    TooLargeError if it has too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=formats) as image:
            if most is not None and image.width * image.height > most:
                its = f"{image.width} x {image.height}"
                raise TooLargeError(f"an image may have at most {most} pixels; {name} has {its}: make it smaller")
            return image.convert(mode)
    except (MemoryError, TooLargeError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise TooLargeError(f"{name} has too many pixels to be decoded ({one_line(e)}): make it smaller") from e
    except Exception as e:  # Pillow's readers raise what they like for a damaged file
        raise SubcompressError(f"{name} cannot be read as an image: {one_line(e)}; check the path") from e


def pixels_of(image: Any, facts: Facts) -> np.ndarray:
    """Resize an image to the size that the network takes, and normalize it: (C, H, W) float32."""
    channels, height, width = facts.input_shape
    if image.size != (width, height):
        image = image.resize((width, height))
    pixels = np.array(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    return normalized(pixels[None], facts)[0]


def normalized(pixels: np.ndarray, facts: Facts) -> np.ndarray:
    """Return (n, C, H, W) uint8 pixels as (pixel / 255 - mean) / std, float32."""
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (facts.mean, facts.std))
    found: np.ndarray = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return found


def class_names(
    classes: int, by_number: Mapping[Any, Any], facts: Facts, labels: Sequence[str] | None = None
) -> Sequence[str] | None:
    """Return a name for each class: from `labels`, otherwise the file, otherwise a configuration, otherwise its number.

    by_number: the configuration's id2label, whose keys are numbers, or numbers as text. Returns None for fewer than two
    classes, because the output is then a value. Raises SubcompressError if `labels` has another number of names.
    """
    if classes < 2:
        return None
    if labels is not None and len(labels) != classes:
        raise SubcompressError(f"labels must name all {classes} outputs; got {len(labels)} names: give {classes}")
    known = [str(by_number.get(i, by_number.get(str(i), i))) for i in range(classes)]
    candidates = (labels, facts.labels, known if len(by_number) == classes else None)
    return next((names for names in candidates if names and len(names) == classes), [str(i) for i in range(classes)])
