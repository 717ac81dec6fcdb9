"""Texts with a class each, from a CSV file, as the tokens of a model."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subcompress.data.ragged import IDS, MASK, Ragged
from subcompress.data.splits import Data
from subcompress.errors import SubcompressError, one_line
from subcompress.facts import Facts

LENGTH = 128
"""Tokens of a text at most, unless told."""

MAX_BYTES = 1 << 30
"""Of a CSV file."""

MAX_CLASSES = 1000

SPLITS = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}
"""What a row may say in the column `split`, and which of (train, validation, test) it means."""

NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Table:
    """The rows of a file. labels: (N,) int64; classes: what each number stands for; splits: three lists of rows."""

    texts: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    splits: tuple[Tensor, Tensor, Tensor]


def load(path: str | Path, tokenizer: Any, length: int = LENGTH) -> Data:
    """The texts of a CSV file (`read`) as tokens of transformers' tokenizer, cut to `length` of them, special ones
    counted; facts.labels: the classes. Segment numbers that are all zero, which a model takes for granted, are
    left out.

    Raises SubcompressError as `read` does, and for a tokenizer that gives no tokens.
    """
    if length < 2:
        raise SubcompressError(f"a text is of at least 2 tokens; length={length} was given: make it larger")
    table = read(path)
    length = min(length, int(getattr(tokenizer, "model_max_length", length)))
    values, cut = _tokens(tokenizer, table.texts, length)
    fills = {IDS: pad_of(tokenizer)}

    def part(rows: Tensor) -> Ragged:
        x = {name: [tensors[i] for i in rows.tolist()] for name, tensors in values.items()}
        return Ragged(x, table.labels[rows], fills)

    parts = train, validation, test = part(table.splits[0]), part(table.splits[1]), part(table.splits[2])
    notes = [f"{Path(path).name}: " + ", ".join(f"{len(p)} {name}" for p, name in zip(parts, NAMES, strict=True))]
    notes[0] += f" texts of {len(table.classes)} classes, {float(train.lengths.float().mean()):.0f} tokens on average"
    if cut:
        notes.append(f"{cut} of {len(table.texts)} texts are cut to length={length} tokens")
    return Data(train, validation, test, facts=Facts(labels=table.classes), notes=tuple(notes))


def read(path: str | Path) -> Table:
    """A CSV file in UTF-8 with a header: columns `text`, `label` and, where it is there, `split` (train, validation or
    test; without it, 80, 10 and 10 % of the rows, drawn the same way every time). Others are passed over.

    Labels are whole numbers, in their order, or else texts, by alphabet; a class each.
    Raises SubcompressError for a file that is none of this, with the number of the line.
    """
    texts, labels, splits = [], [], []
    for line, text, label, split in _rows(Path(path)):
        if not text.strip() or not label:
            raise SubcompressError(
                f"{path}, line {line}: the {'label' if text.strip() else 'text'} is empty: fill it in"
            )
        if split is not None and split.lower() not in SPLITS:
            raise SubcompressError(f"{path}, line {line}: a split is train, validation or test; given {split!r}")
        texts.append(text)
        labels.append(label)
        splits.append(-1 if split is None else SPLITS[split.lower()])
    classes = _classes(path, labels)
    numbers = {name: i for i, name in enumerate(classes)}
    y = torch.tensor([numbers[label] for label in labels])
    return Table(texts, y, classes, _splits(path, torch.tensor(splits), y))


def pad_of(tokenizer: Any) -> int:
    """The token that batches are padded with: that of the tokenizer, or its end of text, or 0."""
    return next((n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id) if n is not None), 0)


def _rows(path: Path) -> Iterator[tuple[int, str, str, str | None]]:
    """Line, text, label and split of each row."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SubcompressError(f"a CSV file is of at most {MAX_BYTES} bytes; {path} has {size}: take fewer rows")
        with path.open(encoding="utf-8-sig", newline="") as f:
            yield from _parsed(path, csv.reader(f, strict=True))
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    except UnicodeDecodeError as e:
        raise SubcompressError(f"a CSV file is in UTF-8; {path} is not ({one_line(e)}): convert it") from e


def _parsed(path: Path, reader: Any) -> Iterator[tuple[int, str, str, str | None]]:
    line = 1
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for name in ("text", "label", "split"):
            if header.count(name) != 1 and (name != "split" or header.count(name)):
                raise SubcompressError(
                    f"{path} begins with a line that names the columns text and label, and split if it is there, once "
                    f"each; it names {', '.join(header)[:200] or 'nothing'}"
                )
        text, label, split = (header.index(name) if name in header else None for name in ("text", "label", "split"))
        assert text is not None
        assert label is not None
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise SubcompressError(
                    f"{path}, line {line}: {len(row)} fields, where the header has {len(header)}: put a text with "
                    "commas in quotes"
                )
            if row:  # else an empty line
                yield line, row[text], row[label].strip(), None if split is None else row[split].strip()
            line = reader.line_num + 1
    except csv.Error as e:
        raise SubcompressError(f"{path}, line {line}: {one_line(e)}: mend the quotes, or cut the text") from e


def _classes(path: str | Path, labels: Sequence[str]) -> tuple[str, ...]:
    found = set(labels)
    if not 2 <= len(found) <= MAX_CLASSES:
        raise SubcompressError(
            f"labels are classes, 2 to {MAX_CLASSES}; {path} has {len(found)} in {len(labels)} rows: look at its column"
        )
    try:
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(found))


def _splits(path: str | Path, given: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if bool((given < 0).any()):
        order = torch.randperm(len(given), generator=torch.Generator().manual_seed(0))
        tenth = len(order) // 10
        given[order] = 0
        given[order[: 2 * tenth]] = 1
        given[order[:tenth]] = 2
    train, validation, test = ((given == k).nonzero()[:, 0] for k in range(3))
    for name, rows in zip(NAMES, (train, validation, test), strict=True):
        if not len(rows):
            raise SubcompressError(f"every split holds texts; {path} has none for {name}: add rows, or mend its column")
    if len(y[train].unique()) < 2:
        raise SubcompressError(f"training texts are of several classes; those of {path} are of one: mix its rows")
    return train, validation, test


def _tokens(tokenizer: Any, texts: list[str], length: int) -> tuple[dict[str, list[Tensor]], int]:
    """Name -> a tensor a text, and how many texts are cut."""
    try:
        found = tokenizer(texts, verbose=False)
        long = [i for i, ids in enumerate(found[IDS]) if len(ids) > length]
        values = {name: [torch.tensor(ids) for ids in lists] for name, lists in found.items()}
        if long:
            short = tokenizer([texts[i] for i in long], truncation=True, max_length=length, verbose=False)
            for name, lists in short.items():
                for i, ids in zip(long, lists, strict=True):
                    values[name][i] = torch.tensor(ids)
    except Exception as e:  # the user's own tokenizer may raise anything
        raise SubcompressError(f"the tokenizer does not take these texts ({one_line(e)}): give another") from e
    values.pop(MASK, None)  # ones, which a batch makes again
    if not any(bool(t.any()) for t in values.get("token_type_ids", ())):
        values.pop("token_type_ids", None)
    return values, len(long)
