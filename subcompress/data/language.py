"""Data sets of language models: texts, prompts with completions, or conversations, as tokens with a label for each.

The labels are those of transformers: the tokens themselves where something is learned, and -100 elsewhere. The loss
`next-token` compares what the network says at a token with the label of the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subcompress.data.in_memory import IGNORED
from subcompress.data.ragged import IDS, Ragged
from subcompress.data.rows import fields_of
from subcompress.data.splits import Data
from subcompress.data.texts import MAX_BYTES, NAMES, Decoded, divided, pad_of, split_number
from subcompress.errors import SubcompressError, explaining, one_line

LENGTH = 1024
"""The most tokens of an example by default, if the network has no context length; also the length of a packed one."""

OUTPUTS = 1 << 26
"""The most numbers in a batch of outputs in an evaluation: a network gives one for each token and each word."""

SHAPES = (("messages",), ("prompt", "completion"), ("text",))
"""The columns that an example may have, in the order in which they are searched."""


@dataclass(frozen=True)
class Example:
    """Tokens and a label for each. line: the line in the file; answer: whether only a part of it is learned."""

    line: int
    ids: list[int]
    labels: list[int]
    answer: bool


def load(path: str | Path, tokenizer: Any, length: int | None = None, packing: bool = False) -> Data:
    """The examples of a file: JSON lines, CSV or TSV by the end of its name, with one of these sets of columns.

    - `text`: all of it is learned.
    - `prompt` and `completion`: the completion is learned, and that it ends.
    - `messages`, in JSON lines: a list of objects with `role` and `content`, which the tokenizer's chat template
      writes; the answers of the assistant are learned.

    A column `split` says train, validation or test; what it lacks is cut from the rest, see `texts.divided`. Others are
    passed over.

    Args:
        path: The file.
        tokenizer: One of transformers.
        length: Tokens of an example at most; see `of_rows`.
        packing: See `of_rows`.

    Raises:
        SubcompressError: A file in another form, with the number of the line.
    """
    return of_rows(fields_of(Path(path), MAX_BYTES), Path(path).name, tokenizer, length, packing)


def of_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    name: str,
    tokenizer: Any,
    length: int | None = None,
    packing: bool = False,
) -> Data:
    """The examples of rows, each with its number and its columns, as for `load`.

    Args:
        rows: Number of the line and the columns by name.
        name: What the rows are called in messages.
        tokenizer: One of transformers.
        length: Tokens of an example at most: longer ones lose their end. By default what the tokenizer says, at most
            `LENGTH`.
        packing: Join the training examples, one after another, and cut them to examples of `length` tokens, so that
            nothing is padded. An example then also sees those before it.

    Raises:
        SubcompressError: Rows of another shape; a prompt that leaves no token of its answer; no chat template.
    """
    length = length_of(tokenizer, length)
    given = list(rows)
    wanted = shape_of(given, name)
    splits, notes = divided([split_number(row.get("split"), f"{name}, line {line}") for line, row in given], name)
    examples = [_example(tokenizer, line, row, wanted, name) for line, row in given]
    cut = sum(len(e.ids) > length for e in examples)
    _check_answers(examples, length, name)
    chosen = [[examples[i] for i in rows.tolist()] for rows in splits]
    kind = {"messages": "conversations", "prompt": "prompts with completions"}.get(wanted[0], "texts")
    sizes = ", ".join(f"{len(part)} {split}" for part, split in zip(chosen, NAMES, strict=True))
    tokens = [len(e.ids) for e in chosen[0]]
    told = [f"{name}: {sizes} {kind}, {sum(tokens) / len(tokens):.0f} tokens on average, of at most {length}", *notes]
    if packing:
        chosen[0] = _packed(chosen[0], length)
        told.append(f"the training texts are packed into {len(chosen[0])} of {length} tokens")
        cut = sum(len(e.ids) > length for e in (*chosen[1], *chosen[2]))
    if cut:
        told.append(f"{cut} of {len(examples)} examples are cut to length={length} tokens")
    train, validation, test = (_split(part, tokenizer, length) for part in chosen)
    return Data(train, validation, test, notes=tuple(told), loss="next-token")


def length_of(tokenizer: Any, length: int | None) -> int:
    """Tokens of an example at most. Raises SubcompressError for fewer than two."""
    if length is None:
        length = min(LENGTH, int(getattr(tokenizer, "model_max_length", LENGTH)))
    if length < 2:
        raise SubcompressError(f"length must be at least 2 tokens; got {length}")
    return length


def shape_of(rows: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> tuple[str, ...]:
    """Return the columns to read, by those of the first row. Raises SubcompressError if it has none of `SHAPES`."""
    columns = list(rows[0][1]) if rows else []
    found = next((shape for shape in SHAPES if set(shape) <= set(columns)), None)
    if found is None:
        raise SubcompressError(
            f"a language model learns from a column text, or prompt and completion, or messages; {name} has "
            f"{', '.join(columns)[:200] or 'no rows'}: rename them"
        )
    return found


def _example(tokenizer: Any, line: int, row: Mapping[str, Any], shape: tuple[str, ...], name: str) -> Example:
    """The tokens of a row. Raises SubcompressError, with its line, for one that has none."""
    where = f"{name}, line {line}"
    values = [row.get(column) for column in shape]
    if shape == ("messages",) or all(isinstance(v, list) for v in values):
        messages = [m for v in values for m in _messages(v, where)]
        learned = len(messages) - 1 if shape != ("messages",) else None
        return _of_pieces(tokenizer, line, conversation(tokenizer, messages, where, learned), end=False)
    for column, value in zip(shape, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            got = "it is empty" if value is None or value == "" or isinstance(value, str) else type(value).__name__
            raise SubcompressError(f"{where}: {column} must be a text; got {got}: fill it in")
    pieces = [(str(v), column != "prompt") for column, v in zip(shape, values, strict=True)]
    return _of_pieces(tokenizer, line, pieces, end=True)


def _of_pieces(tokenizer: Any, line: int, pieces: Sequence[tuple[str, bool]], end: bool) -> Example:
    """The tokens of pieces of text, each learned or not, begun as the tokenizer begins a text and, where `end` is true,
    closed with its end of text."""
    ids: list[int] = list(beginning(tokenizer)) if end else []
    labels = [IGNORED] * len(ids)
    for text, learned in pieces:
        found = tokens_of(tokenizer, text)
        ids += found
        labels += found if learned else [IGNORED] * len(found)
    if end and (last := getattr(tokenizer, "eos_token_id", None)) is not None:
        ids.append(last)
        labels.append(last)
    return Example(line, ids, labels, any(not learned for _, learned in pieces))


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without special ones of their own. Raises SubcompressError."""
    with explaining(lambda e: f"the tokenizer cannot read these texts ({one_line(e)}): give another"):
        return list(tokenizer(text, add_special_tokens=False, verbose=False)[IDS])


def beginning(tokenizer: Any) -> list[int]:
    """The special token that this tokenizer begins a text with, if it does."""
    first = getattr(tokenizer, "bos_token_id", None)
    try:
        found = list(tokenizer("a", verbose=False)[IDS])
    except Exception:  # told where a text of the data is taken
        return []
    return found[:1] if first is not None and found[:1] == [first] else []


def conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, learned: int | None = None
) -> list[tuple[str, bool]]:
    """The text that the chat template makes of a conversation, in pieces, each learned or not: the answers of the
    assistant are, or of them the message of number `learned` alone.

    Raises SubcompressError for a conversation without an answer, a template that is missing or raises, and one that
    writes what came before anew with each message.
    """
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and (learned is None or i == learned)]
    if not answers:
        raise SubcompressError(f"{where}: this conversation has no answer of the assistant: add one")
    whole, at, pieces = chat_text(tokenizer, messages, where), 0, []
    for i in answers:
        before = chat_text(tokenizer, messages[:i], where, prompt=True) if i else ""
        after = chat_text(tokenizer, messages[: i + 1], where)
        if not (whole.startswith(after) and after.startswith(before) and at <= len(before)):
            raise SubcompressError(
                f"{where}: this tokenizer's chat template changes earlier messages when a later one is added: "
                "give prompt and completion as texts"
            )
        pieces += [(whole[at : len(before)], False), (whole[len(before) : len(after)], True)]
        at = len(after)
    return [(text, learns) for text, learns in (*pieces, (whole[at:], False)) if text]


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, prompt: bool = False) -> str:
    """What the tokenizer's chat template writes; prompt: up to where an answer begins. Raises SubcompressError."""
    if not getattr(tokenizer, "chat_template", None):
        raise SubcompressError(
            f"{where}: this tokenizer has no chat template to write messages with: give the tokenizer of a chat "
            "model, or prompt and completion"
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except Exception as e:  # templates raise what they like
        raise SubcompressError(f"{where}: the chat template refuses this conversation ({one_line(e)})") from e


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise SubcompressError(f"{where}: messages must be a list of objects; got {type(value).__name__}")
    for m in value:
        if not isinstance(m, dict) or not all(isinstance(m.get(k), str) for k in ("role", "content")):
            has = ", ".join(map(str, m))[:100] if isinstance(m, dict) else type(m).__name__
            raise SubcompressError(
                f"{where}: a message must have role and content, both texts; one has {has or 'nothing'}"
            )
    return value


def _check_answers(examples: Sequence[Example], length: int, name: str) -> None:
    """Raise SubcompressError if there is nothing to learn within the length, for a prompt that fills it."""
    lost = [e for e in examples if all(label == IGNORED for label in e.labels[1:length])]
    if lost and not lost[0].answer:
        raise SubcompressError(
            f"{name}, line {lost[0].line}: this text has 1 token, and at least 2 are needed: write more"
        )
    if lost:
        longest = max(next((i for i, label in enumerate(e.labels) if label != IGNORED), len(e.labels)) for e in lost)
        raise SubcompressError(
            f"{name}, line {lost[0].line}: the prompt fills all {length} tokens and leaves no room for the "
            f"answer ({len(lost)} such examples, the longest prompt has {longest} tokens): shorten them, or "
            "raise length"
        )


def _packed(examples: Sequence[Example], length: int) -> list[Example]:
    """The examples in a row, cut into equal parts; the first token of each is not learned from the one before."""
    ids = [i for e in examples for i in e.ids]
    labels = [label for e in examples for label in (IGNORED, *e.labels[1:])]
    parts = [Example(0, ids[at : at + length], labels[at : at + length], False) for at in range(0, len(ids), length)]
    return [e for e in parts if any(label != IGNORED for label in e.labels[1:])]


def _split(examples: Sequence[Example], tokenizer: Any, length: int) -> Ragged:
    def cut(lists: Iterator[list[int]]) -> list[Tensor]:
        return [torch.tensor(values[:length]) for values in lists]

    x, y = {IDS: cut(e.ids for e in examples)}, cut(e.labels for e in examples)
    most = max(length, OUTPUTS // max(1, len(tokenizer)))
    return Ragged(x, y, {IDS: pad_of(tokenizer)}, words=Decoded(tokenizer), most=most)
