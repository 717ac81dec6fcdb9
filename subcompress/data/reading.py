"""Data sets that are read example by example: collating batches, in this process or in workers."""

from __future__ import annotations

import pickle
import random
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
    get_worker_info,
)

from subcompress.data.in_memory import Tree, is_finite, tensors_in
from subcompress.errors import SubcompressError, one_line

Collate = Callable[[list[Any]], Any]
"""f(examples) -> (x, y), one batch. x: a tensor, a tuple or dict of them, or any object that `forward` takes."""

MOST_WORKERS = 256

MOST_BYTES = 4 << 30
"""The most bytes of an iterable data set, which is read into memory."""

UNSENT = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for a data set that cannot be sent to a process."""


class DataError(SubcompressError):
    """The data set raised an exception, or its examples cannot be stacked."""


@dataclass(frozen=True)
class WorkerInit:
    """Adapts the `worker_init_fn` of a DataLoader over `examples` to our worker processes."""

    f: Callable[[int], Any]
    examples: Any

    def __call__(self, number: int) -> None:
        """Call f(number) after the process was seeded.

        `get_worker_info().dataset` is the data set that f knows, not our batches. Raises DataError if f raises.
        """
        if (info := get_worker_info()) is not None:
            object.__setattr__(info, "dataset", self.examples)  # a frozen dataclass
        try:
            self.f(number)
        except Exception as e:
            raise DataError(
                f"worker_init_fn raises {type(e).__name__}: {one_line(e)}: fix it, or give --workers 0"
            ) from e


class OnDemand(Dataset[Any]):
    """Examples that are read when they are needed, in `workers` processes beside this one, or in this one for 0.

    collate: f(list of examples) -> (x, y); None stacks tensors and numbers as torch's DataLoader does. prepare: what
    each of these processes does first.
    """

    def __init__(
        self,
        examples: Dataset[Any],
        collate: Collate | None = None,
        workers: int = 0,
        prepare: WorkerInit | None = None,
    ) -> None:
        self.examples, self.collate, self.workers, self.prepare = examples, collate, workers, prepare

    def __len__(self) -> int:
        return len(cast(Sized, self.examples))

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]

    def batch(self, indices: list[int]) -> tuple[Tree, Tree]:
        """Return (x, y) of these examples.

        Raises DataError if the data set or its collate raises, SubcompressError for numbers that are not finite.
        """
        try:
            items = [self.examples[i] for i in indices]
            found = default_collate(items) if self.collate is None else None
        except SubcompressError:
            raise
        except Exception as e:
            raise DataError(
                f"examples cannot be read, or cannot be stacked into a batch: {type(e).__name__}: {one_line(e)}"
            ) from e
        pair = _pair(found if self.collate is None else self._collated(items))
        if not all(is_finite(t) for t in tensors_in(pair)):
            raise SubcompressError("an example holds nan or inf: clean the data")
        return pair

    def _collated(self, items: list[Any]) -> Any:
        assert self.collate is not None
        try:
            return self.collate(items)
        except SubcompressError:
            raise
        except Exception as e:
            name = getattr(self.collate, "__name__", type(self.collate).__name__)
            raise DataError(
                f"collate must take a list of examples and return (x, y); {name} raises {type(e).__name__}: "
                f"{one_line(e)}"
            ) from e


def on_demand(split: Dataset[Any], collate: Collate | None = None, workers: int | None = None) -> OnDemand:
    """Wrap a split with a collate function and a number of workers, by default its own."""
    if isinstance(split, OnDemand):
        workers = split.workers if workers is None else workers
        return OnDemand(split.examples, collate or split.collate, workers, split.prepare)
    return OnDemand(split, collate or own_collate(split), workers or 0)


class Listed(Dataset[Any]):
    """Examples read once from a data set that can only be iterated."""

    def __init__(self, examples: list[Any], collate: Collate | None) -> None:
        self.examples = examples
        if collate is not None:
            self.collate = collate

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


def listed(name: str, stream: Any) -> Listed:
    """The examples of an IterableDataset with a length, read once. Raises SubcompressError if it has no length or a
    wrong one, if it raises, and before its tensors take more than `MOST_BYTES`."""
    if not _measurable(stream):
        raise SubcompressError(
            f"the {name} split has no length and may never end ({type(stream).__name__}): give it __len__, or "
            "give a map-style torch Dataset"
        )
    wanted = len(stream)
    examples = _read_once(name, stream, wanted)
    if len(examples) != wanted:
        yields = "more" if len(examples) > wanted else len(examples)
        raise SubcompressError(
            f"the {name} split has a length of {wanted} but yields {yields} examples: fix its __len__"
        )
    return Listed(examples, own_collate(stream))


def _read_once(name: str, stream: Any, wanted: int) -> list[Any]:
    """Read the examples of a stream, at most one more than expected."""
    examples: list[Any] = []
    held = 0
    try:
        for example in stream:
            examples.append(example)
            held += sum(t.nbytes for t in tensors_in(example))
            if held > MOST_BYTES:
                raise SubcompressError(
                    f"the {name} split is iterable and takes more than the {MOST_BYTES / 2**30:g} GiB that are "
                    "read into memory: give a map-style data set"
                )
            if len(examples) > wanted:
                break
    except SubcompressError:
        raise
    except Exception as e:
        raise DataError(f"the {name} split cannot be read: {type(e).__name__}: {one_line(e)}") from e
    return examples


def own_collate(split: Any) -> Collate | None:
    """Return the attribute `collate` of a data set, or of the one that it is a subset of."""
    while split is not None:
        if callable(found := getattr(split, "collate", None)):
            return cast(Collate, found)
        split = getattr(split, "dataset", None)
    return None


def of_loader(name: str, loader: DataLoader[Any]) -> Dataset[Any]:
    """The examples of a DataLoader, with its collate, its number of workers and its `worker_init_fn`; batch size and
    order are ours.

    Raises SubcompressError for one that streams, and for one whose sampler draws some examples only, or again and
    again.
    """
    examples: Any = loader.dataset
    if isinstance(examples, IterableDataset) and _measurable(examples) and loader.batch_size is not None:
        plain = loader.collate_fn in (default_collate, default_convert)
        found = listed(name, examples)
        return cast("Dataset[Any]", found) if plain else OnDemand(found, loader.collate_fn)
    if isinstance(examples, IterableDataset) or not _measurable(examples):
        raise SubcompressError(
            f"the {name} split is a DataLoader of a stream ({type(examples).__name__}), which has no length and "
            "may never end: give a map-style data set"
        )
    if loader.batch_sampler is None:
        raise SubcompressError(
            f"the DataLoader of the {name} split has batch_size=None, so that its items are batches: give a "
            "data set of single examples"
        )
    examples = _sampled(name, examples, getattr(loader.batch_sampler, "sampler", loader.sampler))
    plain = loader.collate_fn in (default_collate, default_convert)
    if plain and not loader.num_workers and loader.worker_init_fn is None:
        return cast("Dataset[Any]", examples)
    prepare = None if loader.worker_init_fn is None else WorkerInit(loader.worker_init_fn, loader.dataset)
    return OnDemand(examples, own_collate(examples) if plain else loader.collate_fn, loader.num_workers, prepare)


def _measurable(examples: Any) -> bool:
    try:
        return len(examples) >= 0 and hasattr(examples, "__getitem__")
    except (TypeError, NotImplementedError):
        return False


def _sampled(name: str, examples: Any, sampler: Any) -> Any:
    """Return the examples that a sampler selects. Raises SubcompressError unless they are the same, each once, in every
    epoch."""
    if isinstance(sampler, (SequentialSampler, RandomSampler)):
        known = len(sampler.data_source)
        if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != known):
            how = "with" if sampler.replacement else "without"
            raise SubcompressError(
                f"the RandomSampler in the DataLoader of the {name} split draws {sampler.num_samples} of "
                f"{known} examples {how} replacement, but each example is read once per epoch: give a torch "
                "Subset of the examples to train on"
            )
        return examples if known == len(examples) else Subset(examples, range(known))
    if (indices := getattr(sampler, "indices", None)) is not None:
        return Subset(examples, [int(i) for i in indices])
    raise SubcompressError(
        f"the DataLoader of the {name} split draws its examples with {type(sampler).__name__}, but fit chooses "
        "their order and reads each once per epoch: give the data set itself, or a torch Subset of it"
    )


def _pair(found: Any) -> tuple[Tree, Tree]:
    """Split a batch into x and y; a batch of PyTorch Geometric contains its y."""
    if not isinstance(found, (tuple, list)) and hasattr(found, "y") and hasattr(found, "to"):
        found = found, found.y
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        kind = f"{type(found).__name__} of {len(found)}" if isinstance(found, (tuple, list)) else type(found).__name__
        raise DataError(f"collate must return a pair (x, y); it returns {kind}")
    x, y = found
    return dict(x) if isinstance(x, Mapping) and not isinstance(x, dict) else x, y


def read(
    split: OnDemand, batch_size: int, order: Tensor, seed: int, numbers: Sequence[int] | None = None
) -> Generator[tuple[Tree, Tree], None, None]:
    """(x, y) of `batch_size` examples at a time, in that order.

    What the data set draws depends on the seed and on the number of the batch, not on the processes, and leaves the
    caller's random states as they were. numbers: those of the batches, by default counted from 0 on. Raises
    SubcompressError as `OnDemand.batch` does, also from another process.
    """
    parts = order.split(batch_size)
    todo = _Batches(split, parts, seed, range(len(parts)) if numbers is None else numbers)
    found = _prefetched(todo, min(split.workers, len(todo))) if split.workers else todo.each()
    try:
        for item in found:
            if isinstance(item, _Failure):
                raise (DataError if item.of_data else SubcompressError)(item.text)
            yield item
    finally:
        found.close()


@dataclass(frozen=True)
class _Failure:
    """A SubcompressError passed from a worker process."""

    text: str
    of_data: bool


class _Batches(Dataset[Any]):
    """The batches of a pass, by number; a batch may be a failure."""

    def __init__(self, split: OnDemand, parts: tuple[Tensor, ...], seed: int, numbers: Sequence[int]) -> None:
        self.split, self.parts, self.seed, self.numbers = split, parts, seed, numbers
        self.failed: _Failure | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> tuple[Tree, Tree] | _Failure:
        if self.failed is not None:
            return self.failed
        try:
            with _drawing(self.seed, self.numbers[k]):
                found = self.split.batch(self.parts[k].tolist())
            if (worker := get_worker_info()) is not None and k < worker.num_workers:
                _check_sent(found)
            return found
        except SubcompressError as e:
            return _Failure(str(e), isinstance(e, DataError))

    def begin_worker(self, number: int) -> None:
        """Initialize a worker process, which ignores signals: the parent handles them and ends it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `_interruptions_held_back`
        try:
            if self.split.prepare is not None:
                self.split.prepare(number)
        except DataError as e:  # raised where the batch is asked for
            self.failed = _Failure(str(e), of_data=True)

    def each(self) -> Generator[Any, None, None]:
        """Yield all batches, read in this process."""
        for k in range(len(self)):
            yield self[k]


def _check_sent(found: Any) -> None:
    """Raise DataError for a batch that cannot be sent to another process, for which the queue would wait forever."""
    try:
        pickle.dumps(found)
    except Exception as e:
        raise DataError(
            f"a batch cannot be sent from the process that read it: {type(e).__name__}: {one_line(e)}: give --workers 0"
        ) from e


@contextmanager
def _drawing(seed: int, k: int) -> Iterator[None]:
    """Seed torch (on the CPU), numpy and random from these two numbers alone within the block."""
    mixed = int(np.random.SeedSequence([seed & ((1 << 64) - 1), k]).generate_state(1, np.uint64)[0])
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(mixed & ((1 << 63) - 1))
        np.random.seed(mixed & 0xFFFFFFFF)
        random.seed(mixed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _prefetched(todo: _Batches, workers: int) -> Generator[Any, None, None]:
    """Yield all batches in order, read ahead by worker processes, which end with this generator."""
    try:
        yield from _from_workers(todo, workers)
    except (RuntimeError, OSError, EOFError, *UNSENT) as e:
        raise DataError(
            f"a process that reads examples ended early, or could not start: {type(e).__name__}: {one_line(e)}: "
            "give --workers 0 to read them in the main process"
        ) from e


def _from_workers(todo: _Batches, workers: int) -> Generator[Any, None, None]:
    """Yield all batches. Torch's signal handler raises RuntimeError for a process that died at any moment, also while
    another exception is on its way."""
    iterator = None
    try:
        iterator = _begun(todo, workers)
        for _ in range(len(todo)):
            yield next(iterator)
    finally:
        try:
            _end(iterator)
        except RuntimeError:
            _end(iterator)


def _begun(todo: _Batches, workers: int) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than processors are the user's choice
        loader: DataLoader[Any] = DataLoader(
            todo,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=todo.begin_worker,
            generator=torch.Generator().manual_seed(0),  # else it draws from the training's
        )
        with _interruptions_held_back():
            return iter(loader)


@contextmanager
def _interruptions_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended.

    A process that begins inside of it waits too, until it ignores Ctrl-C: one that came while it was being forked would
    be lost in a callback, and leave it half begun.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(iterator: Any) -> None:
    """Stop the processes of an iterator now, not when it is collected."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def _as_it_is(item: Any) -> Any:
    return item
