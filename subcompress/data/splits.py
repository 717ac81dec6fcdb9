"""The three splits: training, validation for choices, and a test split that is read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from subcompress.data.in_memory import InMemory, Tree, is_finite, tensors_in, to_device, tree_map
from subcompress.data.ragged import gathered
from subcompress.data.reading import (
    MOST_WORKERS,
    Collate,
    DataError,
    Listed,
    OnDemand,
    listed,
    of_loader,
    on_demand,
    own_collate,
    read,
)
from subcompress.errors import SubcompressError, one_line
from subcompress.format.facts import Facts, Input
from subcompress.support.interruption import check_interrupted
from subcompress.support.tables import html_table
from subcompress.tensors.layout import Layout


@dataclass(frozen=True, eq=False)
class Split(InMemory):
    """Examples in memory.

    Attributes:
        x: Prepared inputs: a tensor of shape (N, ...), or a tuple or dict of such tensors.
        y: What the loss takes: labels of shape (N,), or values of shape (N, ...).
    """

    x: Tree
    y: Tree

    def __len__(self) -> int:
        return next((len(t) for t in tensors_in(self.y)), 0)

    def __getitem__(self, i: Any) -> tuple[Tree, Tree]:
        return tree_map(lambda t: t[i], self.x), tree_map(lambda t: t[i], self.y)

    def tensors(self) -> Iterator[Tensor]:
        """Return the tensors of x and y."""
        return tensors_in((self.x, self.y))


@dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test split, and what a receiver must know to prepare an input.

    If a split is a DataLoader, its data set, `collate_fn`, number of workers and `worker_init_fn` are used, but not its
    batch size and order. Examples of a data set that is not in memory are read one by one in every epoch. Texts (dicts
    with 1-D `input_ids`) are read once and padded batch by batch. An IterableDataset with a length is read into memory.

    Attributes:
        train: A map-style data set of (x, y), or a DataLoader.
        validation: The same. All decisions are made on it.
        test: The same. It is read once, at the end.
        facts: What a receiver must know about the input.
        augment: f(x, generator) -> x, which changes the inputs of a training batch at random.
        notes: Lines for the log about how the data were read.
        collate: f(list of examples) -> (x, y), for graphs and for examples of different lengths. x may then be any
            object that `forward` takes. By default the data set's attribute `collate`.
        workers: Number of processes that read examples ahead. It does not change results.
        loss: The name of the loss that suits the labels. It takes the place of cross-entropy.

    Raises:
        SubcompressError: Nothing can be learned from the splits.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    facts: Facts = Facts()
    augment: Callable[[Tree, torch.Generator], Tree] | None = None
    notes: tuple[str, ...] = ()
    collate: Collate | None = None
    workers: int | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise SubcompressError(f"--workers must be between 0 and {MOST_WORKERS}; got {self.workers}")
        for name in ("train", "validation", "test"):
            split = _prepared(name, getattr(self, name), self.collate, self.workers)
            object.__setattr__(self, name, split)
        if not (self.facts.input_shape or self.facts.inputs):
            object.__setattr__(self, "facts", _with_inputs(self.facts, self.train))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {n:,}" for name, n in self._sizes())
        return f"Data({'; '.join([sizes, *self._told()])})"

    def _repr_html_(self) -> str:
        """The sizes of the splits, and what an example is, for a notebook."""
        sizes = [(name, f"{n:,}") for name, n in self._sizes()]
        return "".join([html_table(sizes, ("split", "examples")), *(f"<p>{escape(t)}</p>" for t in self._told())])

    def _sizes(self) -> list[tuple[str, int]]:
        return [(name, size(getattr(self, name))) for name in ("train", "validation", "test")]

    def _told(self) -> list[str]:
        """What an example is, as far as the facts say."""
        facts = self.facts
        inputs = [i for i in facts.inputs if i.name]
        told = [f"input {facts.input_shape} {facts.input_dtype or 'F32'}"] if facts.input_shape else []
        told += [f"inputs {', '.join(i.name for i in inputs)}"] if inputs else []
        return told + ([f"{len(facts.labels)} classes"] if len(facts.labels) > 1 else [])

    def digest(self) -> str:
        """Return a few characters that differ if the data in memory do; for other data, the sizes."""
        root = hashlib.sha256(getattr(self.augment, "__name__", "").encode())
        for split in (self.train, self.validation, self.test):
            root.update(f"{size(split)};{collate_name(split)}".encode())
            for t in split.tensors() if isinstance(split, InMemory) else ():
                root.update(f"{t.dtype}{tuple(t.shape)}".encode())
                root.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return root.hexdigest()[:16]


def as_data(data: Any, workers: int | None = None) -> Data:
    """The data as `Data`. Raises SubcompressError for anything that is neither that nor three data sets.

    workers: processes that read examples ahead; None for what the data say.
    """
    if isinstance(data, (tuple, list)) and len(data) == 3:
        data = Data(*data)
    if not isinstance(data, Data):
        given, more = type(data).__name__, ""
        if isinstance(data, (tuple, list)):
            given += f" of {len(data)}"
        elif callable(data):
            more = ": call it, and give what it returns"
        raise SubcompressError(f"data must be a Data or (train, validation, test); got a {given}{more}")
    return data if workers is None else replace(data, workers=workers)


def size(split: Dataset[Any]) -> int:
    """Return the number of examples in a split."""
    return len(cast(Sized, split))


def split_on_device(split: Dataset[Any], device: torch.device) -> Dataset[Any]:
    """Return a split in memory on the device, so that steps need not copy it; any other as it is."""
    if not isinstance(split, Split) or device.type == "cpu":
        return split
    return Split(tree_map(lambda t: t.to(device), split.x), tree_map(lambda t: t.to(device), split.y))


def batches(
    split: Dataset[Any],
    batch_size: int,
    device: torch.device | str = "cpu",
    order: Tensor | None = None,
    seed: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Generator[tuple[Tree, Tree], None, None]:
    """(x, y) of `batch_size` examples at a time, in that order, the last batch with what is left.

    seed: that of random draws of a data set that is not in memory, by default torch's last one; numbers: see
    `read`. Raises SubcompressError if the data set raises, and for numbers that are not finite.
    """
    order = torch.arange(size(split)) if order is None else order
    if isinstance(split, InMemory):
        found = _held(split, batch_size, order)
    else:
        found = read(on_demand(split), batch_size, order, torch.initial_seed() if seed is None else seed, numbers)
    with closing(found):
        for x, y in found:
            check_interrupted()
            yield to_device(x, device), to_device(y, device)


def _held(split: InMemory, batch_size: int, order: Tensor) -> Generator[tuple[Tree, Tree], None, None]:
    for i in order.split(batch_size):
        try:
            pair = split[i]
        except SubcompressError:
            raise
        except Exception as e:
            raise DataError(f"an example cannot be read: {type(e).__name__}: {one_line(e)}") from e
        yield pair


def call(module: nn.Module, x: Tree) -> Any:
    """Call the module on a tensor, a tuple of tensors or a dict of tensors by name; return the main output of
    transformers' outputs."""
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, (tuple, list)) else (x,), {})
    main = main_output(found := module(*args, **kwargs))
    return found if main is None else main[1]


NEEDS_GRAD = "does not require grad"
"""Part of torch's message when something is differentiated that was computed without recording a graph."""


def without_graph(f: Callable[[], Any]) -> Any:
    """Return what f returns, detached.

    f runs without a graph, since a graph would keep all activations. If f itself differentiates, it is run again with
    one: for example a network that computes forces from an energy, or a loss with the residual of an equation."""
    try:
        with torch.no_grad():
            return f()
    except (RuntimeError, SubcompressError) as e:
        if NEEDS_GRAD not in str(e):
            raise
    with torch.enable_grad():
        return tree_map(Tensor.detach, f())


def main_output(found: Any) -> tuple[str, Tensor] | None:
    """Name and value of what a network of transformers is for, in its ModelOutput: the logits where there are some,
    else the last hidden state. None for anything else."""
    if "ModelOutput" not in (kind.__name__ for kind in type(found).__mro__):
        return None
    return next(((n, t) for n in ("logits", "last_hidden_state") if isinstance(t := found.get(n), Tensor)), None)


def image_split(images: Tensor, labels: Tensor, facts: Facts) -> Split:
    """Prepare uint8 images (N, C, H, W) and labels (N,) as a Split, under the facts' preprocessing."""
    mean = torch.tensor(facts.mean).view(1, -1, 1, 1)
    std = torch.tensor(facts.std).view(1, -1, 1, 1)
    return Split((images.float() / 255 - mean) / std, labels.long())


def collate_name(split: Dataset[Any]) -> str:
    """Return the name of the collate function, empty for torch's own."""
    collate = split.collate if isinstance(split, OnDemand) else None
    return "" if collate is None else getattr(collate, "__qualname__", type(collate).__qualname__)


def _prepared(name: str, split: Any, collate: Collate | None, workers: int | None) -> Dataset[Any]:
    """The split, in memory where it can be. Raises SubcompressError for what cannot be learned from."""
    if isinstance(split, DataLoader):
        split = of_loader(name, split)
    elif isinstance(split, IterableDataset):
        split = listed(name, split)
    collate = collate or (split.collate if isinstance(split, OnDemand) else own_collate(split))
    if collate is None:
        split = _in_memory(name, split)
    else:
        _check_length(name, split)
        _first(name, split)
    if isinstance(split, InMemory) and collate is None:
        return split
    if collate is None and not workers and not isinstance(split, OnDemand):
        return cast("Dataset[Any]", split)
    return on_demand(split, collate, workers)


def _in_memory(name: str, split: Any) -> Dataset[Any]:
    """The split, checked, as a `Split` or `Ragged` where it is tensors or texts."""
    inner = split.examples if isinstance(split, OnDemand) else split
    if isinstance(inner, TensorDataset) and len(inner.tensors) == 2:
        split = Split(*inner.tensors)
    if isinstance(split, Split):
        split = _of_tensors(name, split)
    _check_length(name, split)
    if isinstance(split, Split):
        _check_tensors(name, split)
        return split
    item = _first(name, split)
    if isinstance(inner, Listed):
        split = _stacked(inner) or split
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise SubcompressError(
            f"the examples of a split must be pairs (x, y); the {name} split yields {type(item).__name__}: "
            "return two things"
        )
    if not isinstance(split, InMemory) and _is_text(item[0]):
        return _gathered(name, inner)
    return cast("Dataset[Any]", split)


def _stacked(split: Listed) -> Split | None:
    """Return the examples as a Split if they are pairs of tensors and numbers that stack."""
    try:
        x, y = default_collate(split.examples)
    except Exception:  # told where they are learned from
        return None
    whole = all(isinstance(part, Tensor) for part in (x, y))
    return Split(x, y) if whole else None


def _of_tensors(name: str, split: Split) -> Split:
    """The split with arrays and lists of numbers as tensors. Raises SubcompressError if they are something else."""
    found = {}
    for part in ("x", "y"):
        value = getattr(split, part)
        if not isinstance(value, np.ndarray) and (not isinstance(value, list) or any(map(torch.is_tensor, value))):
            continue  # tensors, or a tree of them
        try:
            found[part] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as e:
            kind = "text" if any(isinstance(v, str) for v in value) else "what is no array of numbers"
            raise SubcompressError(
                f"a Split must hold tensors; {part} of the {name} split is a {type(value).__name__} of {kind}: "
                "number the classes, or make tensors"
            ) from e
    return replace(split, **found) if found else split


def _check_length(name: str, split: Any) -> None:
    if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise SubcompressError(
            f"a split must be a map-style torch Dataset, with a length and (x, y) items; the {name} split is "
            f"{type(split).__name__}: wrap it in one"
        )
    if len(split) == 0:
        raise SubcompressError(f"the {name} split is empty: give it some examples")


def _check_tensors(name: str, split: Split) -> None:
    if {len(t) for t in tensors_in((split.x, split.y))} != {len(split)}:
        raise SubcompressError(
            f"x and y of the {name} split have different numbers of rows: give one row of each per example"
        )
    for t in tensors_in((split.x, split.y)):
        if not is_finite(t):
            at = int((~t.reshape(len(t), -1).isfinite()).any(1).nonzero()[0])
            raise SubcompressError(f"example {at} of the {name} split holds nan or inf: clean it")


def _first(name: str, split: Any) -> Any:
    try:
        return split[0]
    except Exception as e:
        raise SubcompressError(f"the {name} split's first example raises {type(e).__name__}: {e}") from e


def _is_text(x: Any) -> bool:
    """Whether an example is what a tokenizer gives."""
    return isinstance(x, dict) and np.ndim(x.get("input_ids", 0)) == 1


def _gathered(name: str, split: Any) -> Dataset[Any]:
    try:
        return gathered(split)
    except Exception as e:
        raise DataError(f"the {name} split cannot be read: {type(e).__name__}: {' '.join(str(e).split())}") from e


def _with_inputs(facts: Facts, train: Dataset[Any]) -> Facts:
    """Add shape and dtype of the inputs of an example to the facts, so that a receiver can export a graph."""
    if isinstance(train, OnDemand) and train.collate is not None:
        return facts  # what a collate makes of one example tells little of others
    x, _ = next(batches(train, 1, order=torch.arange(1)))
    named = x if isinstance(x, dict) else {str(i): t for i, t in enumerate(x)} if isinstance(x, tuple) else {"": x}
    try:
        layout = Layout.of(named)
    except (SubcompressError, AttributeError, TypeError):
        return facts  # a dtype or a nesting that no graph takes
    if isinstance(x, Tensor):
        dtype = layout.tensors[0].dtype
        return replace(facts, input_shape=layout.tensors[0].shape[1:], input_dtype="" if dtype == "F32" else dtype)
    names, varying = isinstance(x, dict), train.varying if isinstance(train, InMemory) else ()
    shapes = [(0, *t.shape[2:]) if t.name in varying else t.shape[1:] for t in layout]
    inputs = (Input(t.name if names else "", t.dtype, shape) for t, shape in zip(layout, shapes, strict=True))
    return replace(facts, inputs=tuple(inputs))


__all__ = [
    "Data",
    "DataError",
    "Split",
    "batches",
    "call",
    "image_split",
    "is_finite",
    "main_output",
    "size",
    "split_on_device",
]
