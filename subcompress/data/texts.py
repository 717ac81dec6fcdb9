"""Data sets of texts, or pairs of texts, with a class or a value each, read from a file and tokenized for a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subcompress.data.ragged import IDS, MASK, Ragged
from subcompress.data.rows import KINDS, Row, rows_of
from subcompress.data.splits import Data
from subcompress.errors import SubcompressError, one_line
from subcompress.format.facts import Facts

LENGTH = 128
"""The most tokens of a text by default."""

MAX_BYTES = 1 << 30
"""The most bytes of a file."""

MAX_CLASSES = 1000

SPLITS = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}
"""The values of the column `split`, and which of (train, validation, test) each means."""

NAMES = ("train", "validation", "test")

SUFFIXES = tuple(KINDS)
"""The endings of the names of files of texts."""

VALUE = "value"
"""The name of the only output if labels are numbers."""


@dataclass(frozen=True)
class Table:
    """The rows of a file. labels: (N,) int64, and classes, what each number stands for; or (N,) float32 values, without
    classes. splits: three lists of rows; pairs: the second text of each, where there is one; notes: lines on how the
    rows were split, for a person."""

    texts: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    splits: tuple[Tensor, Tensor, Tensor]
    pairs: list[str] | None = None
    notes: tuple[str, ...] = ()


def load(path: str | Path, tokenizer: Any, length: int = LENGTH) -> Data:
    """The texts of a file (`read`) as tokens of transformers' tokenizer, cut to `length` of them, special ones counted;
    facts.labels: the classes, or the one value. Segment numbers that are all zero, which a model takes for granted, are
    left out.

    Raises SubcompressError as `read` does, and for a tokenizer that gives no tokens.
    """
    return of_table(read(path), Path(path).name, tokenizer, length)


def of_table(table: Table, name: str, tokenizer: Any, length: int = LENGTH) -> Data:
    """`load` for rows at hand. name: what they are called in messages."""
    if length < 2:
        raise SubcompressError(f"length must be at least 2 tokens; got {length}")
    length = min(length, int(getattr(tokenizer, "model_max_length", length)))
    values, cut = _tokens(tokenizer, table.texts, table.pairs, length)
    fills, words = {IDS: pad_of(tokenizer)}, Decoded(tokenizer)

    def part(rows: Tensor) -> Ragged:
        x = {name: [tensors[i] for i in rows.tolist()] for name, tensors in values.items()}
        return Ragged(x, table.labels[rows], fills, words=words)

    parts = train, validation, test = part(table.splits[0]), part(table.splits[1]), part(table.splits[2])
    notes = [f"{name}: " + ", ".join(f"{len(p)} {split}" for p, split in zip(parts, NAMES, strict=True))]
    kind = "texts" if table.pairs is None else "pairs of texts"
    what = f"of {len(table.classes)} classes" if table.classes else "with values (--loss mse)"
    notes[0] += f" {kind} {what}, {float(train.lengths.float().mean()):.0f} tokens on average"
    notes += table.notes
    if cut:
        notes.append(f"{cut} of {len(table.texts)} texts are cut to length={length} tokens")
    return Data(train, validation, test, facts=Facts(labels=table.classes or (VALUE,)), notes=tuple(notes))


@dataclass(frozen=True)
class Decoded:
    """The text of tokens, without special ones."""

    tokenizer: Any

    def __call__(self, ids: Tensor) -> str:
        """Raises SubcompressError for a tokenizer that does not decode."""
        try:
            return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        except Exception as e:  # the user's own tokenizer may raise anything
            raise SubcompressError(f"the tokenizer cannot decode its own tokens ({one_line(e)}): give another") from e


def read(path: str | Path) -> Table:
    """A file in UTF-8: CSV or TSV with a header, or JSON lines, by the end of its name. It has columns `text`, `label`
    and, where they are there, `text_pair`, the second one of two texts, and `split` (train, validation or test; without
    it, 80, 10 and 10 % of the rows, drawn the same way every time). Others are ignored.

    Labels are whole numbers, in their order, or else texts, by alphabet; a class each. Numbers of which one is not
    whole are values, for a regression.
    Raises SubcompressError, with the number of the line, for a file in another form.
    """
    return table_of(list(rows_of(Path(path), MAX_BYTES)), path)


def table_of(rows: Sequence[Row], path: str | Path, names: Sequence[str] = ()) -> Table:
    """The rows as a table. path: their name in messages; names: the names of classes whose labels are numbers, counted
    from 0. Raises SubcompressError as `read` does."""
    splits = [split_number(row.split, f"{path}, line {row.line}") for row in rows]
    texts, pairs = [row.text for row in rows], [row.pair or "" for row in rows if row.pair is not None] or None
    labels = [row.label for row in rows]
    if (values := _values(labels)) is not None:
        parts, notes = _splits(path, splits, values)
        return Table(texts, values, (), parts, pairs, notes)
    classes = _classes(path, labels)
    numbers = {name: i for i, name in enumerate(classes)}
    y = torch.tensor([numbers[label] for label in labels])
    parts, notes = _splits(path, splits, y)
    if names and classes == tuple(str(i) for i in range(len(names))):
        classes = tuple(names)
    return Table(texts, y, classes, parts, pairs, notes)


def split_number(name: str | None, where: str) -> int:
    """Which of (train, validation, test) a name means; -1 for none. Raises SubcompressError for any other, saying
    where."""
    if name is None:
        return -1
    if not isinstance(name, str) or name.strip().lower() not in SPLITS:
        raise SubcompressError(f"{where}: a split must be train, validation or test; got {name!r}")
    return SPLITS[name.strip().lower()]


def divided(numbers: Sequence[int], path: str | Path) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[str, ...]]:
    """The rows of each split, and lines that say which of them were cut from the training rows.

    numbers: the number of each row, see `split_number`. If no row names its split, 80, 10 and 10 % are drawn. For a
    split without rows, a tenth of the training rows is drawn. Both are drawn the same way every time. Raises
    SubcompressError if a split stays empty.
    """
    given, notes = torch.tensor(numbers), []
    if bool((given < 0).any()):
        order = torch.randperm(len(given), generator=torch.Generator().manual_seed(0))
        tenth = len(order) // 10
        given[order] = 0
        given[order[: 2 * tenth]] = 1
        given[order[:tenth]] = 2
    else:
        drawn = torch.Generator().manual_seed(0)
        tenth = int((given == 0).sum()) // 10
        for k in (k for k in (1, 2) if not bool((given == k).any())):
            rows = (given == 0).nonzero()[:, 0]
            given[rows[torch.randperm(len(rows), generator=drawn)[:tenth]]] = k
            if tenth:
                notes.append(f"{path} has no split {NAMES[k]}: {tenth} training rows, drawn by a fixed seed, are taken")
    train, validation, test = ((given == k).nonzero()[:, 0] for k in range(3))
    for name, rows in zip(NAMES, (train, validation, test), strict=True):
        if not len(rows):
            raise SubcompressError(f"{path} has no texts for the split {name}: add rows, or fix its column split")
    return (train, validation, test), tuple(notes)


def _values(labels: Sequence[str]) -> Tensor | None:
    """Return labels as numbers, (N,), if all are finite and at least one is not an integer."""
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return None
    if all(value.is_integer() for value in values) or not all(map(math.isfinite, values)):
        return None
    return torch.tensor(values, dtype=torch.float32)


def pad_of(tokenizer: Any) -> int:
    """Return the padding token: the tokenizer's, or its end of text, or 0."""
    return next((n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id) if n is not None), 0)


def _classes(path: str | Path, labels: Sequence[str]) -> tuple[str, ...]:
    found = set(labels)
    if not 2 <= len(found) <= MAX_CLASSES:
        raise SubcompressError(
            f"the labels of {path} must name 2 to {MAX_CLASSES} classes; its {len(labels)} rows name "
            f"{len(found)}: check its column"
        )
    try:
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(found))


def _splits(path: str | Path, given: Sequence[int], y: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[str, ...]]:
    parts, notes = divided(given, path)
    if len(y[parts[0]].unique()) < 2:
        kind = "value" if y.is_floating_point() else "label"
        raise SubcompressError(f"all training texts of {path} have the same {kind}: mix its rows")
    return parts, notes


def _tokens(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, length: int
) -> tuple[dict[str, list[Tensor]], int]:
    """Tokenize the texts; return name -> a tensor for each text, and how many texts were cut."""

    def given(rows: Sequence[int]) -> list[list[str]]:
        return [[column[i] for i in rows] for column in (texts, pairs) if column is not None]

    try:
        found = tokenizer(*given(range(len(texts))), verbose=False)
        long = [i for i, ids in enumerate(found[IDS]) if len(ids) > length]
        values = {name: [torch.tensor(ids) for ids in lists] for name, lists in found.items()}
        if long:
            short = tokenizer(*given(long), truncation=True, max_length=length, verbose=False)
            for name, lists in short.items():
                for i, ids in zip(long, lists, strict=True):
                    values[name][i] = torch.tensor(ids)
    except Exception as e:  # the user's own tokenizer may raise anything
        raise SubcompressError(f"the tokenizer cannot read these texts ({one_line(e)}): give another") from e
    values.pop(MASK, None)  # ones, which a batch makes again
    if not any(bool(t.any()) for t in values.get("token_type_ids", ())):
        values.pop("token_type_ids", None)
    return values, len(long)
