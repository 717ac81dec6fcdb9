"""Examples of different lengths, usually texts: stored without padding, padded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from subcompress.data.in_memory import IGNORED, InMemory, Tree, tensors_in, tree_map
from subcompress.errors import SubcompressError

IDS, MASK = "input_ids", "attention_mask"

Words = Callable[[Tensor], str]
"""Returns the text of 1-D `input_ids`."""

WINDOW = 50
"""Batches of training whose examples are sorted by length together: enough that a batch hardly pads, few enough that
examples of one length do not meet the same ones in every epoch."""

TOKENS = 1 << 14
"""The most tokens of a batch in an evaluation, including padding."""


class Ragged(InMemory):
    """Examples in memory, each a dict of 1-D tensors of one length, and of others that are stacked.

    A batch is padded at the end, to its longest example, with `fills` (by name; 0 where it has none). `attention_mask`,
    1 where there is a token and 0 where there is padding, is made where the examples have none.
    """

    def __init__(
        self,
        x: Mapping[str, Sequence[Tensor]],
        y: Tree,
        fills: Mapping[str, int] | None = None,
        *,
        by: str = IDS,
        words: Words | None = None,
        most: int = TOKENS,
    ) -> None:
        """x: name -> one tensor an example; those of the name `by` are 1-D and give the lengths, and every other name
        whose tensors are 1-D and as long is padded with it. y: (N, ...), as in `Split`; or a list with a label for each
        token, one 1-D tensor an example, which batches pad with `IGNORED`. words: the text of the tokens of an example,
        for a person. most: tokens of a batch in an evaluation, padding counted.

        Raises SubcompressError for an example without a token, and for one with more labels or fewer than tokens.
        """
        self.lengths = torch.tensor([t.shape[0] if t.ndim == 1 else 0 for t in x[by]])
        if bool((self.lengths == 0).any()):
            at = int((self.lengths == 0).nonzero()[0])
            raise SubcompressError(f"{by} of example {at} must be 1-D with at least one token: clean the example")
        wanted = [(n,) for n in self.lengths.tolist()]
        alike = {name for name, tensors in x.items() if [tuple(t.shape) for t in tensors] == wanted}
        self.values = {name: torch.cat(list(x[name])) for name in x if name in alike}
        self.stacked = {name: torch.stack(list(x[name])) for name in x if name not in alike}
        self.labels = _joined_labels(y, self.lengths) if isinstance(y, list) else None
        self.y = None if self.labels is not None else y
        self.fills, self.words, self.most = dict(fills or {}), words, most
        self.starts = self.lengths.cumsum(0) - self.lengths

    @property
    def varying(self) -> frozenset[str]:
        """The names of inputs that are padded."""
        return frozenset((*self.values, MASK))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: Any) -> tuple[dict[str, Tensor], Tree]:
        """Return one example, or a padded batch for several indices: (n,) -> name -> (n, longest of them)."""
        if not isinstance(i, Tensor) or not i.ndim:
            x, y = self[torch.tensor([int(i)])]
            return {name: t[0] for name, t in x.items()}, tree_map(lambda t: t[0], y)
        lengths, position = self.lengths[i, None], torch.arange(int(self.lengths[i].max()))
        inside = position < lengths
        at = self.starts[i, None] + torch.minimum(position, lengths - 1)
        x = {name: torch.where(inside, t[at], self.fills.get(name, 0)) for name, t in self.values.items()}
        x |= {MASK: inside.long()} if MASK not in x else {}
        x |= {name: t[i] for name, t in self.stacked.items()}
        if self.labels is not None:
            return x, torch.where(inside, self.labels[at], IGNORED)
        return x, tree_map(lambda t: t[i], self.y)

    def tokens(self, i: int) -> Tensor:
        """`input_ids` of an example, (tokens,)."""
        return self.values[IDS][self.starts[i] : self.starts[i] + self.lengths[i]]

    def tensors(self) -> Iterator[Tensor]:
        """Return all tensors of the data set."""
        yield from tensors_in((self.values, self.lengths, self.stacked, self.y, torch.tensor([*self.fills.values()])))
        yield from tensors_in(self.labels)

    def arranged(self, order: Tensor, batch_size: int) -> Tensor:
        """Return an order close to the given one in which each batch has examples of similar length."""
        found = []
        for window in order.split(WINDOW * batch_size):
            near = window[self.lengths[window].argsort(stable=True)]
            whole = near[: len(near) // batch_size * batch_size].view(-1, batch_size)
            turns = window[: len(whole)].argsort()  # as random as the order is, and no draw of its own
            found += [whole[turns].reshape(-1), near[whole.numel() :]]
        return torch.cat(found)

    def swept(self, batch_size: int) -> tuple[Tensor, int]:
        """Return all examples, the longest first, and how many go into a batch of an evaluation."""
        return self.lengths.argsort(descending=True, stable=True), min(
            batch_size, max(1, self.most // int(self.lengths.max()))
        )


def _joined_labels(y: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """The labels of all tokens in a row, (tokens,) int64. Raises SubcompressError for an example with more or fewer."""
    found = [len(t) if t.ndim == 1 else 0 for t in y]
    if odd := next((i for i, (n, wanted) in enumerate(zip(found, lengths.tolist(), strict=True)) if n != wanted), None):
        raise SubcompressError(
            f"example {odd} has {found[odd]} labels for {int(lengths[odd])} tokens: give one for each token, "
            f"{IGNORED} where nothing is learned"
        )
    return torch.cat(list(y)).long()


def gathered(split: Dataset[Any]) -> Ragged:
    """Read a data set of examples (dict with 1-D `input_ids`, y) once, into memory. `input_ids` are padded with
    its attribute `pad`, 0 where it has none; its attribute `words`, where it has one, makes text of them. Raises
    SubcompressError where the examples differ in their names."""
    items = [split[i] for i in range(len(cast(Sized, split)))]
    names = [list(x) for x, _ in items]
    if odd := next((i for i, found in enumerate(names) if set(found) != set(names[0])), None):
        raise SubcompressError(
            f"all examples must have the same inputs; example 0 has {', '.join(names[0])}, example {odd} "
            f"{', '.join(names[odd])}"
        )
    x = {name: [torch.as_tensor(x[name]) for x, _ in items] for name in names[0]}
    words = getattr(split, "words", None)
    words = words if callable(words) else None
    labels = [y for _, y in items]
    y = [torch.as_tensor(y) for y in labels] if _of_tokens(x[IDS], labels) else default_collate(labels)
    return Ragged(x, y, {IDS: int(getattr(split, "pad", 0))}, words=words)


def _of_tokens(ids: Sequence[Tensor], labels: Sequence[Any]) -> bool:
    """Whether examples of several lengths have a label for each token."""
    lengths = [len(t) for t in ids]
    return len(set(lengths)) > 1 and lengths == [len(y) if np.ndim(y) == 1 else 0 for y in labels]
