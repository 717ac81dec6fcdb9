"""The built-in data sets by name. A new one is one file with a `load` and one line here."""

from collections.abc import Callable
from pathlib import Path

from subcompress.data import cifar10, digits, mnist
from subcompress.data.augment import AUGMENTS, augment_of
from subcompress.data.shuffled import shuffle_labels, shuffle_pixels
from subcompress.data.splits import Data, Split
from subcompress.errors import SubcompressError
from subcompress.support.suggestions import suggestion

DATA: dict[str, Callable[[Path | None], Data]] = {
    "digits": digits.load,
    "mnist": mnist.load,
    "cifar10": cifar10.load,
}


def load_data(name: str, folder: str | Path | None = None) -> Data:
    """Load a data set by name.

    Args:
        name: digits (embedded), mnist or cifar10.
        folder: Where the files of mnist or cifar10 lie.

    Returns:
        The data, with labels and how to prepare an input as facts.

    Raises:
        SubcompressError: An unknown name, or files that are missing or damaged.
    """
    if name not in DATA:
        raise SubcompressError(f"--data takes one of {', '.join(DATA)}; got {name!r}{suggestion(name, DATA)}")
    return DATA[name](Path(folder) if folder is not None else None)


__all__ = ["AUGMENTS", "DATA", "Data", "Split", "augment_of", "load_data", "shuffle_labels", "shuffle_pixels"]
