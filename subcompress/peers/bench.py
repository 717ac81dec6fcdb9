"""The setting in which all peers are measured: the same network, data, training budget and metric."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from subcompress.data import Data
from subcompress.data.in_memory import InMemory
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.subspace.copying import copied
from subcompress.subspace.module import Subspace
from subcompress.subspace.plan import make_plan
from subcompress.subspace.seeds import seed_everything
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.training.loop import DeadRunError, Direct, Quantize, Trainee, TrainOptions, train
from subcompress.training.settings import BASED_BASELINE_RATES, BASELINE_RATES
from subcompress.training.tasks import Task, evaluate


@dataclass(frozen=True)
class Row:
    """A way to ship the network. bytes: on disk, all that a receiver needs beside code; value: the metric on the test
    split; seconds: to train it and make the file; note: what a reader must know."""

    name: str
    bytes: int
    value: float
    seconds: float
    note: str = ""


class SkippedError(Exception):
    """The peer is not available here; the message says why."""


class Rounds(Trainee, Protocol):
    """What is trained, and rounded from `begin` on."""

    def begin(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Bench:
    """record: that of our file, of `size` bytes, which took `seconds`; folder: for the files that peers write."""

    model: nn.Module
    data: Data
    task: Task
    record: Record
    size: int
    seconds: float
    recipe: TrainOptions
    folder: Path
    listener: Listener = field(default_factory=Listener)

    def trained(self, module: nn.Module, title: str, lr: float | None = None) -> float:
        """Train what of a module wants a gradient, with the budget of our fit. Returns the seconds it took."""
        usual = BASELINE_RATES if self.record.base is None else BASED_BASELINE_RATES
        return self._train(Direct(module), title, lr or usual[0])

    def rounded(self, trainee: Rounds, title: str, lr: float) -> float:
        """Train a network that rounds its weights from half-way on. Returns the seconds it took."""
        return self._train(trainee, title, lr, lambda _: trainee.begin())

    @property
    def new(self) -> list[str]:
        """Return the modules of which the base has no tensor: heads."""
        if (base := self.record.base) is None:
            return []
        owners = {name: name.rpartition(".")[0] for name, _ in self.model.named_parameters()}
        known = {owner for name, owner in owners.items() if name in base}
        return [owner for owner in dict.fromkeys(owners.values()) if owner and owner not in known]

    def _train(self, trainee: Trainee, title: str, lr: float, quantize: Quantize | None = None) -> float:
        recipe, began = replace(self.recipe, lr=lr, rate=0.0, optimiser="adam"), time.perf_counter()
        recipe = recipe if quantize is None else recipe.rounded_early()
        self.listener.run(title, recipe.epochs)
        try:
            train(trainee, self.data, self.task, recipe, quantize=quantize, listener=self.listener, note=title)
        except DeadRunError as e:
            raise SkippedError(f"its training failed: {e}") from e
        trainee.eval()
        return time.perf_counter() - began

    @cached_property
    def direct(self) -> tuple[nn.Module, float]:
        """The network trained in all of its weights, from its own start, and the seconds it took. Trained once, and
        kept in the folder."""
        module, path = copied(self.model, "cpu"), self.folder / DIRECT
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # nothing is read before it fits
            module.load_state_dict(held["state"])
            return module.eval(), float(held["seconds"])
        except Exception:  # none yet, or one that was cut off: torch raises many kinds
            module = copied(self.model, "cpu")
        seed_everything(self.recipe.seed, 0)
        seconds = self.trained(module, "trained directly")
        data = io.BytesIO()
        torch.save({"state": module.state_dict(), "seconds": seconds}, data)
        write_bytes(path, data.getvalue())
        return module, seconds

    def forget(self) -> None:
        """Discard the network that `direct` stored, so that it is trained again."""
        (self.folder / DIRECT).unlink(missing_ok=True)

    def floats(self, d: int, title: str) -> tuple[dict[str, Tensor], Tensor, float]:
        """The state dict of a fit in d float32 coordinates, never rounded; the coordinates; the seconds it took."""
        plan = make_plan(self.model, d, seed=self.recipe.seed)
        subspace = Subspace(copied(self.model, "cpu"), plan, own=True)
        seconds = self._train(subspace, title, plan.lr)
        with torch.no_grad(), subspace.materialized() as module:
            state = {name: t.detach().clone() for name, t in module.state_dict().items()}
        return state, subspace.z.detach().clone(), seconds

    def loaded(self, state: dict[str, Tensor]) -> nn.Module:
        """The network with these weights."""
        module = copied(self.model, "cpu")
        module.load_state_dict(state)
        return module.eval()

    def value(self, module: nn.Module) -> tuple[float, str]:
        """The metric on the test split: in ONNX Runtime, one example at a time, where there is a graph; else in torch.
        And a note where it was not ONNX Runtime."""
        module = copy.deepcopy(module).eval()
        try:
            return self.value_of_graph(self.graph(module)), ""
        except SkippedError as e:
            return evaluate(module, self.data.test, self.task), f"in torch: {e}"

    def graph(self, module: nn.Module) -> bytes:
        """The network as ONNX with its weights inside. Raises SkippedError if it cannot be made."""
        from subcompress.onnx import graph_of

        try:
            data = graph_of(module, self.data.facts).SerializeToString()
        except SubcompressError as e:
            raise SkippedError(str(e)) from e
        assert isinstance(data, bytes)
        return data

    def value_of_graph(self, data: bytes) -> float:
        """The metric of a graph on the test split. Raises SkippedError where it is not an accuracy."""
        from subcompress.onnx import accuracy_of_graph

        test = self.data.test
        if not self.task.is_accuracy or not isinstance(test, InMemory):
            raise SkippedError("ONNX Runtime measures only accuracies, of examples in memory")
        with fails("ONNX Runtime cannot run it"):
            return accuracy_of_graph(data, test)

    def validation(self, module: nn.Module) -> float:
        """The metric that choices are made by."""
        return evaluate(module, self.data.validation, self.task)

    def write(self, name: str, data: bytes) -> int:
        """Keep a file; returns its bytes."""
        write_bytes(self.folder / name, data)
        return (self.folder / name).stat().st_size


DIRECT = "direct.pt"


@contextmanager
def fails(what: str) -> Iterator[None]:
    """Whatever another library raises skips its peer, with the reason."""
    try:
        yield
    except (SkippedError, KeyboardInterrupt):
        raise
    except Exception as e:
        raise SkippedError(f"{what}: {type(e).__name__}: {' '.join(str(e).split())[:120]}") from e


Peer = Callable[[Bench], list[Row]]


def joined(*notes: str) -> str:
    """Notes, those that say something."""
    return "; ".join(n for n in notes if n)


def best(values: list[float], task: Task) -> int:
    """The index of the best value."""
    return (min if task.minimise else max)(range(len(values)), key=values.__getitem__)
