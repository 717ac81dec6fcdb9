"""Data sets of Hugging Face's library `datasets`, from a folder or the Hub: `pip install '.[datasets]'` in a clone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subcompress.data import language, texts
from subcompress.data.rows import NEEDED, OPTIONAL, Row, row_of
from subcompress.data.splits import Data
from subcompress.errors import SubcompressError, explaining, one_line
from subcompress.support.suggestions import suggestion

FOUND = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""For each split, the names that it may have; the first one found is used."""

SAVED = ("dataset_dict.json", "state.json")
"""Files in a folder that `save_to_disk` wrote."""


@dataclass(frozen=True)
class Source:
    """A data set and what is read of it.

    place: a folder, or an id on the Hub; config: the name of one of its configurations; splits: train, validation, test
    -> the name that it has there; columns: text, label, prompt, ... -> the name that it has there.
    """

    place: str
    config: str | None = None
    splits: Mapping[str, str] | None = None
    columns: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return Path(self.place).name if Path(self.place).is_dir() else self.place


def load(source: Source, tokenizer: Any, length: int | None = None, *, continued: bool, packing: bool = False) -> Data:
    """The texts of a data set as tokens. A validation or test split that it lacks is cut from the training rows.

    Args:
        source: The data set: a folder that `save_to_disk` wrote, a folder of JSON lines, CSV or Parquet, or an id.
        tokenizer: One of transformers.
        length: Tokens of an example at most.
        continued: Whether the texts are for a language model, as in `language.load`; else they have labels, as in
            `texts.load`.
        packing: See `language.of_rows`.

    Raises:
        SubcompressError: The library is not there, or cannot read the data set, or a split or a column is missing.
    """
    splits = _splits(source)
    rows = list(_rows(source, splits))
    if continued:
        return language.of_rows(rows, source.name, tokenizer, length, packing)
    names = _class_names(splits["train"], (source.columns or {}).get("label", "label"))
    table = texts.table_of([_labeled(source, line, row) for line, row in rows], source.name, names)
    return texts.of_table(table, source.name, tokenizer, texts.LENGTH if length is None else length)


def _splits(source: Source) -> dict[str, Any]:
    """Our name of each split that is there -> its rows. Raises SubcompressError."""
    given = dict(source.splits or {})
    with _datasets(source.place) as library:
        found = _read(library, source)
        if not isinstance(found, Mapping):
            found = {"train": found}
    splits = {}
    for ours, names in FOUND.items():
        name = given.get(ours) or next((n for n in names if n in found), None)
        if name is None:
            continue
        if name not in found:
            raise SubcompressError(
                f"{ours}={name} is not a split of {source.name}, which has {', '.join(found)}{suggestion(name, found)}"
            )
        splits[ours] = found[name]
    if "train" not in splits:
        raise SubcompressError(f"{source.name} has no split train, only {', '.join(found)}: name one with train=SPLIT")
    return splits


def _read(library: Any, source: Source) -> Any:
    """What the library makes of the place."""
    folder = Path(source.place).expanduser()
    if not folder.is_dir():
        return library.load_dataset(source.place, source.config)
    if any((folder / name).is_file() for name in SAVED):
        return library.load_from_disk(str(folder))
    return library.load_dataset(str(folder), source.config)


@contextmanager
def _datasets(place: str) -> Iterator[Any]:
    """Provide the library without progress bars, and its exceptions as one line."""
    try:
        import datasets as library
    except ImportError as e:
        raise SubcompressError(
            f"--data hf:{place} needs the library datasets, and it is not here ({one_line(e)}): pip install datasets"
        ) from e
    bars = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        with explaining(lambda e: f"the library datasets cannot read {place} ({one_line(e)}): check it"):
            yield library
    finally:
        if not bars:
            library.enable_progress_bars()


def _rows(source: Source, splits: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """All rows with their number, and the columns under our names. Raises SubcompressError for a column that is
    missing."""
    columns, line = dict(source.columns or {}), 0
    for ours, split in splits.items():
        there = list(split.column_names)
        for name in columns.values():
            if name not in there:
                raise SubcompressError(
                    f"{source.name} has no column {name}; it has {', '.join(there)}{suggestion(name, there)}"
                )
        for row in split:
            line += 1
            renamed = row | {new: row[old] for new, old in columns.items()}
            yield line, renamed | {"split": ours}


def _labeled(source: Source, line: int, row: Mapping[str, Any]) -> Row:
    """A row of a text and its label. Raises SubcompressError for a column that is missing."""
    if missing := [name for name in NEEDED if name not in row]:
        raise SubcompressError(
            f"texts with labels need the columns text and label; {source.name} has "
            f"{', '.join(n for n in row if n != 'split')}: give {missing[0]}=COLUMN, or --model "
            "hf:DIR,task=causal-lm for texts without labels"
        )
    plain = {name: _plain(row[name]) for name in (*NEEDED, *OPTIONAL) if name in row}
    return row_of(source.name, line, plain)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


def _class_names(split: Any, label: str) -> Sequence[str]:
    """The names of the classes, where the data set says them."""
    return tuple(getattr(split.features.get(label), "names", None) or ())
