"""The shards of a batch shared by several processes, over torch.distributed: gloo on CPUs, NCCL on GPUs.

The NCCL path is untested: no machine with several GPUs was at hand.

A worker that ends breaks its connections, which the others notice at once; one that is silent, its machine without
power, is given up after TIMEOUT. While the first worker does something long, such as evaluating, it says so every BEAT
seconds.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from subcompress.errors import SubcompressError, one_line
from subcompress.support import world
from subcompress.training.sharding.shards import Shards, ToldError, WorkerLostError

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds after which a worker that does not answer is given up."""

VARIABLE = "SUBCOMPRESS_WORKER_TIMEOUT"
"""The environment variable that sets another number of seconds."""

PATIENCE = timedelta(minutes=30)
"""How long workers wait for one another to read their data and to build their networks."""

BEAT = 5.0
"""Seconds between two signs of life of the first worker, while it works alone."""

WORKING, JOIN, DONE = 0, 1, 2
"""The messages of the first worker: it works alone, the others join, it is done."""

_meetings = itertools.count()
"""The number of trainings of this process so far: each uses separate names in the store."""


@contextmanager
def sharing(count: int) -> Iterator[Shards]:
    """The shards of a batch, shared with the other processes that torchrun started for this training.

    Raises:
        SubcompressError: The processes cannot share the shards evenly.
        ToldError: The same, in any worker but the first, as for whatever the first one tells.
    """
    if world.workers() == 1:
        yield Shards(count)
        return
    _check_share(count)
    shards = Workers(count)
    try:
        yield shards
    except Exception as e:
        if (told := shards.left(e)) is e:
            raise
        raise told from e
    finally:
        shards.close()


def _check_share(count: int) -> None:
    """Raise SubcompressError, or ToldError in any worker but the first, unless each worker gets as many shards."""
    workers = world.workers()
    if count < 1 or count % workers:
        kind = ToldError if world.rank() else SubcompressError
        raise kind(
            f"{workers} workers cannot share --shards {count} evenly: give a multiple of {workers}, or start "
            "another number of workers"
        )


class Workers(Shards):
    """This process as one of several that share the shards of each batch."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.rank, self.workers = world.rank(), world.workers()
        self._key = f"subcompress/{next(_meetings)}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._timeout = _timeout()
        self._met, self._owns = False, not dist.is_initialized()
        with _losing("cannot be reached"):
            self._store = self._rendezvous()
        self._device = torch.device("cpu")
        self._group: Any = None
        self._fast: Any = None
        self._beats: _Beats | None = None

    def _rendezvous(self) -> Any:
        """Where workers leave word before there is a group: torchrun's own store, or that of MASTER_ADDR."""
        if not self._owns:
            return dist.distributed_c10d._get_default_store()
        return next(iter(rendezvous("env://", self.rank, self.workers, timeout=PATIENCE)))[0]

    def meet(self, device: torch.device) -> None:
        """Wait for all workers, then connect them. Raises SubcompressError for what one of them met before."""
        self._device = device
        with _losing("did not begin"):
            self._store.set(f"{self._key}/{self.rank}", "")
            names = [f"{self._key}/{r}" for r in range(self.workers)]
            self._store.wait(names, PATIENCE)
            words = [self._store.get(name).decode() for name in names]
            for rank, text in enumerate(words):
                if text:
                    raise SubcompressError(f"worker {rank}: {text}")
            self._connect()
        self._met = True

    def _connect(self) -> None:
        timeout = self._timeout
        if self._owns:
            store = torch._C._distributed_c10d.PrefixStore(self._key, self._store)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.workers, timeout=timeout)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            self._fast = dist.new_group(backend="nccl", timeout=timeout)

    def left(self, error: Exception) -> Exception:
        """The error to raise if this worker ends with one: only the first worker reports a mistake of the user."""
        if not self._met:
            try:
                self._store.set(f"{self._key}/{self.rank}", str(error) or type(error).__name__)
            except RuntimeError:  # there is nobody left to tell it
                return error
        if self.first or isinstance(error, WorkerLostError) or not isinstance(error, SubcompressError):
            return error
        return ToldError(str(error))

    def close(self) -> None:
        """Let go of the connections."""
        if self._met and self._owns:
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def alone(self, work: Callable[[], T], join: Callable[[Any], None] | None = None) -> T:
        """See `Shards.alone`."""
        return self._lead(work) if self.first else self._follow(join)

    def _lead(self, work: Callable[[], T]) -> T:
        error: Exception | None = None
        found: Any = None
        around, self._beats = self._beats, _Beats(self._group)
        try:
            found = work()
        except Exception as e:
            error = e
        finally:
            self._beats.stop()
            self._beats = around
        if isinstance(error, WorkerLostError):
            raise error
        text = "" if error is None else str(error) or type(error).__name__
        self._tell(DONE, (found if error is None else None, text))
        if error is not None:
            raise error
        return found

    @contextmanager
    def joined(self, message: Any) -> Iterator[None]:
        """See `Shards.joined`."""
        assert self._beats is not None, "within `alone`"
        self._beats.stop()
        self._tell(JOIN, message)
        try:
            yield
        finally:
            self._beats = _Beats(self._group)

    def _follow(self, join: Callable[[Any], None] | None) -> Any:
        while True:
            state, message = self._hear()
            if state == DONE:
                break
            assert join is not None, "nothing to join"
            join(message)
        found, error = message
        if error:
            raise ToldError(error)
        return found

    def _tell(self, state: int, message: Any) -> None:
        """Say what the others do next."""
        with _losing():
            dist.broadcast(torch.tensor([state]), 0, group=self._group)
            dist.broadcast_object_list([message], 0, group=self._group, device=torch.device("cpu"))

    def _hear(self) -> tuple[int, Any]:
        """What `_tell` says in the first worker, which may take long to say it."""
        state, held = torch.tensor([WORKING]), [None]
        with _losing():
            while int(state) == WORKING:
                dist.broadcast(state, 0, group=self._group)
            dist.broadcast_object_list(held, 0, group=self._group, device=torch.device("cpu"))
        return int(state), held[0]

    def together(self, work: Callable[[], T]) -> T:
        """See `Shards.together`."""
        error: Exception | None = None
        found: Any = None
        try:
            found = work()
        except Exception as e:
            error = e
        someone = bool(self.largest(torch.tensor([int(error is not None)])))
        self.agree(error, someone)
        return found

    def agree(self, error: Exception | None, someone: bool) -> None:
        """See `Shards.agree`. Raises the error of the first worker that met one: its own in that worker, a
        SubcompressError in the others."""
        if not someone:
            return
        held: list[Any] = [None] * self.workers
        mine = None if error is None else str(error) if isinstance(error, SubcompressError) else _words(error)
        with _losing():
            dist.all_gather_object(held, mine, group=self._group)
        rank = next(r for r, text in enumerate(held) if text is not None)
        if error is not None and (rank == self.rank or not isinstance(error, SubcompressError)):
            raise error
        raise SubcompressError(held[rank])

    def check_same(self, what: str, value: str) -> None:
        """See `Shards.check_same`."""
        mine = self.alone(lambda: value)

        def check() -> None:
            if value != mine:
                raise SubcompressError(
                    f"all workers of a training need the same {what}; that of worker {self.rank} differs from "
                    "that of the first: give each the same files and the same versions"
                )

        self.together(check)

    def largest(self, values: Tensor) -> Tensor:
        """See `Shards.largest`."""
        with _losing():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values

    def total(self, values: Tensor) -> Tensor:
        """See `Shards.total`."""
        with _losing():
            dist.all_reduce(values, dist.ReduceOp.SUM, group=self._fast if values.is_cuda else self._group)
        return values


class _Beats:
    """Signs of life of the first worker, from now on until `stop`."""

    def __init__(self, group: Any) -> None:
        self._group, self._ended = group, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the main thread meets it next
            while not self._ended.wait(BEAT):
                dist.broadcast(torch.tensor([WORKING]), 0, group=self._group)

    def stop(self) -> None:
        """End them; the connections are free then."""
        self._ended.set()
        self._thread.join()


def _timeout() -> timedelta:
    """How long a worker may be silent. Raises SubcompressError, or ToldError in any worker but the first."""
    said = os.environ.get(VARIABLE, str(TIMEOUT))
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if 3 * BEAT <= seconds <= 86_400:
        return timedelta(seconds=seconds)
    kind = ToldError if world.rank() else SubcompressError
    raise kind(f"{VARIABLE} must be between {3 * BEAT:g} and 86400 seconds; got {said[:40]}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def _losing(how: str = "ended, or does not answer") -> Iterator[None]:
    """What torch.distributed raises, as one line."""
    try:
        yield
    except RuntimeError as e:
        raise WorkerLostError(
            f"a worker of this training {how}: start the same command again, with any number of workers that "
            f"divides --shards, to continue ({one_line(e, 120)})"
        ) from e


__all__ = ["Workers", "sharing"]
