"""The training loop: Adam, one cycle of the step size, rounding for the second half; stopped and gone on with at
will."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subcompress.data import Data
from subcompress.data.in_memory import InMemory, Tree, tensors_in
from subcompress.data.parts import Parts, in_parts
from subcompress.data.splits import batches, is_finite, size, split_on_device
from subcompress.errors import SubcompressError, one_line, shown
from subcompress.subspace.changing import extra_states
from subcompress.subspace.curvature import Curvature
from subcompress.subspace.module import Subspace
from subcompress.subspace.seeds import seed_everything
from subcompress.support.listener import Listener, Progress, StepProgress
from subcompress.training.direct import Direct
from subcompress.training.judging import WINDOW, DeadRunError, Judge
from subcompress.training.optimizers import OPTIMIZERS, scheduled, state_like
from subcompress.training.pressure import Pressure
from subcompress.training.sharding import Shards, Step
from subcompress.training.tasks import Task, evaluate
from subcompress.training.train_options import EPOCHS, PRECISIONS, TrainOptions, check_recipe, epochs_of

TELL_EVERY = 2.0
"""Seconds within an epoch after which a listener hears how far it is."""

SAVE_EVERY = 2.0
"""Seconds between checkpoints, at the least: they are written at the ends of epochs."""


Quantize = Callable[[Curvature | None], None]
"""Begins to round what is trained."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training. value: the metric on the validation split at the end; curve: that metric after each
    epoch; stopped: whether `hopeless` stopped it; silent: the number of coordinates whose gradient was always zero,
    which are not counted if all weights of a network are trained."""

    value: float
    curve: tuple[float, ...]
    seconds: float
    stopped: bool = False
    silent: int = 0


class Trainee(Protocol):
    """What is trained: a Subspace, or a network in all of its weights (`Direct`)."""

    def materialized(self) -> Any: ...
    def coded_bits(self) -> Tensor | None: ...
    def moving(self) -> dict[str, Tensor]: ...
    def settings(self) -> dict[str, Any]: ...
    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None: ...
    def parameters(self) -> Iterator[Tensor]: ...
    def train(self) -> Any: ...
    def eval(self) -> Any: ...


@dataclass(frozen=True)
class Like:
    """A tensor of a checkpoint. shape: None if it may be any; needed: whether it is in each checkpoint; group: those
    with which it is, if it is."""

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    needed: bool = True
    group: frozenset[str] = frozenset()


class Checkpoint(Protocol):
    """Where a training keeps what it needs to go on. `load` raises SubcompressError for tensors that are not those
    expected."""

    def load(self, expected: Mapping[str, Like]) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...
    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None: ...


def train(
    trainee: Trainee,
    data: Data,
    task: Task,
    recipe: TrainOptions,
    *,
    quantize: Quantize | None = None,
    listener: Listener | None = None,
    note: str = "",
    checkpoint: Checkpoint | None = None,
    hopeless: Callable[[tuple[float, ...]], bool] | None = None,
    pressure: Pressure | None = None,
    shards: Shards | None = None,
) -> Outcome:
    """Train what `trainee.parameters()` names; with a checkpoint, from where it was left, to the same end.

    The order of the examples depends on the seed alone, dropout and the like on the seed and the epoch. `quantize` is
    called once, when rounding begins, with the curvature if it was observed; `hopeless` after each epoch, with the
    validation metrics so far: true ends the run. `pressure` prices the coordinates that a file has no room for.
    `shards`: who runs the parts of each batch; by default this process. Raises DeadRunError early for a run whose loss
    is not finite or not below guessing, SubcompressError for data and losses that cannot be trained with.
    """
    began, shards = time.perf_counter(), shards or Shards(recipe.shards)
    try:
        run = _Run(trainee, data, task, recipe, listener or Listener(), note, pressure, shards)
        return run.run(quantize, checkpoint, hopeless)
    except DeadRunError as e:
        e.seconds = time.perf_counter() - began
        raise


class _Run:
    def __init__(
        self,
        trainee: Trainee,
        data: Data,
        task: Task,
        recipe: TrainOptions,
        listener: Listener,
        note: str,
        pressure: Pressure | None,
        shards: Shards,
    ) -> None:
        self.trainee, self.data, self.task, self.recipe = trainee, data, task, recipe
        self.listener, self.note, self.pressure = listener, note, pressure
        self.parameters = list(trainee.parameters())
        self.device = self.parameters[0].device
        self.examples = split_on_device(data.train, self.device)
        self.steps_per_epoch = size(data.train) // recipe.batch_size
        self.total = recipe.total(size(data.train))
        self.begin_rounding = int(self.total * recipe.quantise_after)
        self.begin_observing = int(self.total * recipe.observe_after)
        self.curvature: Curvature | None = None
        self.optimizer = OPTIMIZERS[recipe.optimiser](self.parameters, recipe.lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.lr, total_steps=max(self.total, 2))
        self.judge = Judge(task.guess(data.train), self.total)
        self.curve: list[float] = []
        self.step, self.before = 0, 0.0
        self.shards = shards if recipe.shards > 1 else Shards()
        self.sharded: Step | None = None
        if recipe.shards > 1:
            assert isinstance(trainee, Subspace), "shards exchange the gradient of z"
            self.sharded = Step(self.shards, trainee, recipe.seed)
        self.seen: list[tuple[Tree, Tree]] = []
        z = getattr(trainee, "z", None)
        self.heard = None if z is None else torch.zeros_like(z, dtype=torch.bool)

    def run(
        self,
        quantize: Quantize | None,
        checkpoint: Checkpoint | None,
        hopeless: Callable[[tuple[float, ...]], bool] | None,
    ) -> Outcome:
        recipe, began = self.recipe, time.perf_counter()
        self.began = self.told = self.saved = began
        self.judge.rounding = self.begin_rounding if quantize is not None else None
        if checkpoint is not None and (held := self._held(checkpoint)) is not None:
            try:
                self._restore(*held, rounds=quantize is not None)
            except SubcompressError as e:
                where = getattr(checkpoint, "path", "the checkpoint")
                raise SubcompressError(f"{where}: {e}: remove it to start this training again") from e
        order = torch.Generator().manual_seed(recipe.seed & ((1 << 63) - 1))
        for epoch in range(1, recipe.epochs + 1):
            shuffled = torch.randperm(size(self.data.train), generator=order)
            if epoch <= len(self.curve):
                continue
            self._epoch(epoch, shuffled, quantize)
            seconds, self.told = self._seconds(), time.perf_counter()
            loss = self.judge.mean()
            self.listener.epoch(
                Progress(epoch, recipe.epochs, loss, self.curve[-1], seconds, self.note, self.task.metric_name)
            )
            if epoch < recipe.epochs and self.shards.alone(partial(_says, hopeless, tuple(self.curve))):
                return self._outcome(seconds, True)
            if checkpoint is not None:
                self._save(checkpoint, seconds)
        self.judge.verdict(self.step)
        return self._outcome(self._seconds())

    def _held(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        expected = self._expected()
        return self.shards.alone(lambda: checkpoint.load(expected))

    def _save(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Keep a checkpoint, where the last one was a while ago."""

        def save() -> None:
            if time.perf_counter() - self.saved > SAVE_EVERY:
                checkpoint.save(*self._state(seconds))
                self.saved = time.perf_counter()

        self.shards.alone(save)

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _outcome(self, seconds: float, stopped: bool = False) -> Outcome:
        silent = 0 if self.heard is None else int((~self.heard).sum())
        return Outcome(self.curve[-1], tuple(self.curve), seconds, stopped, silent)

    def _epoch(self, epoch: int, shuffled: Tensor, quantize: Quantize | None) -> None:
        drawn = seed_everything(self.recipe.seed, epoch)
        self.trainee.train()
        if self.pressure is not None:
            self.pressure.look()
        used = shuffled[: min(self.steps_per_epoch, self.total - self.step) * self.recipe.batch_size]
        if isinstance(self.data.train, InMemory):
            used = self.data.train.arranged(used, self.recipe.batch_size)
        try:
            for parts in self._parts(used, drawn):
                if quantize is not None:
                    self._prepare_rounding(quantize)
                self._step(parts, drawn)
                self._tell(epoch)
            self.trainee.eval()
            self.curve.append(self.shards.alone(self._evaluated))
        except DeadRunError:
            self.shards.together(self._check_seen)  # else the examples are at fault
            raise

    def _prepare_rounding(self, quantize: Quantize) -> None:
        """Observe gradients from where that begins, and round where rounding begins."""
        if self.heard is not None and self.step == self.begin_observing < self.begin_rounding:
            self.curvature = Curvature(self.heard.numel(), self.device)
        if self.step == self.begin_rounding:
            quantize(self.curvature)
            self.curvature = None
            if self.pressure is not None:
                self.pressure.look()

    def _evaluated(self) -> float:
        with self.trainee.materialized() as module:
            return evaluate(module, self.data.validation, self.task)

    def _check_seen(self) -> None:
        for batch in self.seen:
            _check_batch(batch)

    def _parts(self, used: Tensor, drawn: torch.Generator) -> Iterator[Iterable[Parts]]:
        """For each step, its batch; or what gives this worker's shards of it. Each in as many parts as are to pass
        through the network one by one."""
        shards, parts, own = self.recipe.shards, self.recipe.accumulate, self.shards.own
        steps, each = len(used) // self.recipe.batch_size, self.recipe.batch_size // (shards * parts)
        if shards == 1:
            for whole in in_parts(batches(self.examples, each, self.device, used), parts, self.task.weight):
                yield (whole,)
            return
        order = used.view(steps, shards, each * parts)[:, list(own)].reshape(-1)
        numbers = [(step * shards + s) * parts + i for step in range(steps) for s in own for i in range(parts)]
        with closing(batches(self.examples, each, self.device, order, drawn.initial_seed(), numbers)) as found:
            coming = in_parts(found, parts, self.task.weight)
            for _ in range(steps):
                yield islice(coming, len(own))

    def _step(self, parts: Iterable[Parts], drawn: torch.Generator) -> None:
        coming = iter(parts)
        if self.sharded is None:
            loss = self._backward(next(coming), drawn)
        else:
            self.seen = []
            loss = self.sharded.run(self.step, lambda own: self._backward(next(coming), own))
            if (price := self._priced(loss)).requires_grad:
                price.backward()
            self._say_sharing(self.sharded)
        if self.heard is not None and (g := self.parameters[0].grad) is not None:
            self.heard.logical_or_(g)
            if self.curvature is not None:
                self.curvature.see(g)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.judge.see(loss.detach(), self.step)

    def _backward(self, whole: Parts, drawn: torch.Generator) -> Tensor:
        """The loss of a batch, or a shard of one, and its gradient; with the price, where the batch is whole."""
        self.optimizer.zero_grad()
        self.seen = [] if self.sharded is None else self.seen
        alone = len(whole.each) == 1
        losses = [self._backward_of(share, batch, drawn, alone) for share, batch in whole.each]
        if alone:
            return losses[0]
        loss = torch.stack(losses).sum()
        if self.sharded is None and (price := self._priced(loss)).requires_grad:
            price.backward()
        return loss

    def _backward_of(self, share: float, batch: tuple[Tree, Tree], drawn: torch.Generator, alone: bool) -> Tensor:
        """What a part adds to the loss, and to the gradient. alone: it is all of the batch, or of a shard."""
        if self.data.augment is not None:
            batch = (self._augmented(batch[0], drawn), batch[1])
        self.seen = [*self.seen, batch]
        with self.trainee.materialized() as module:
            with self.recipe.autocast(self.device):
                loss = self.task.loss_of(module, batch)
            self._check_first(loss, batch)
            loss = loss if alone else share * loss
            # While the module holds the weights: checkpointed layers run once more in here.
            if loss.requires_grad:  # not of a batch that only an expert reads which is not trained
                (self._priced(loss) if self.sharded is None and alone else loss).backward()
        return loss if alone else loss.detach().reshape(())

    def _say_sharing(self, step: Step) -> None:
        """Say once what a step sends, and among how many."""
        if self.shards.said:
            return
        self.shards.said = True
        workers = f"{self.shards.workers} workers" if self.shards.workers > 1 else "1 worker"
        self.listener.note(
            f"{self.recipe.shards} shards per batch, {workers}: a step exchanges {step.body_bytes} bytes and a "
            f"header of {step.header_bytes}"
        )

    def _tell(self, epoch: int) -> None:
        """Say how far the epoch is, once in a while: what is said waits for the device."""
        if (now := time.perf_counter()) - self.told > TELL_EVERY:
            self.told, loss = now, self.judge.mean()
            at = StepProgress(epoch, self.recipe.epochs, self.step, self.total, loss, self._seconds())
            self.listener.step(at)

    def _priced(self, loss: Tensor) -> Tensor:
        """The loss and what the coordinates cost."""
        bits = self.trainee.coded_bits() if self.recipe.rate else None
        priced = loss if bits is None else loss + self.recipe.rate * bits
        more = self.pressure.of(loss) if self.pressure is not None else None
        return priced if more is None else priced + more

    def _augmented(self, x: Tree, drawn: torch.Generator) -> Tree:
        assert self.data.augment is not None
        try:
            return self.data.augment(x, drawn)
        except Exception as e:
            name = getattr(self.data.augment, "__name__", "it")
            words = one_line(e, 200)
            raise SubcompressError(
                f"an augmentation must take a batch of inputs and a generator; {name} raises "
                f"{type(e).__name__}: {words}"
            ) from e

    def _check_first(self, loss: Tensor, batch: tuple[Tree, Tree]) -> None:
        """Raise SubcompressError if the first loss is no finite scalar with a gradient: no step size fixes that."""
        if self.step:
            return
        if not loss.requires_grad:
            raise SubcompressError(f"the loss {self.task.loss_name} does not depend on the weights: is it detached?")
        if not math.isfinite(float(loss.detach())):
            _check_batch(batch)
            raise SubcompressError(
                f"the loss must be finite before training; {self.task.loss_name} gave {float(loss.detach())}: "
                "check the model and the loss"
            )

    def _state(self, seconds: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the rest of the run depends on."""
        tensors = {f"module.{name}": t for name, t in self.trainee.moving().items()}
        for i, p in enumerate(self.parameters):
            for name, value in self.optimizer.state[p].items():
                tensors[f"optimiser.{i}.{name}"] = value
        if self.heard is not None:
            tensors["heard"] = self.heard
        if self.curvature is not None:
            self.curvature.flush()
            tensors["curvature"] = self.curvature.moment
        group = self.optimizer.param_groups[0]
        meta = {
            "settings": self.trainee.settings(),
            "curve": list(self.curve),
            "step": self.step,
            "seconds": seconds,
            "lr": group["lr"],
            "betas": list(group["betas"]),
            "losses": [float(x) for x in self.judge.recent],
            "worst": self.judge.worst,
            "before": self.judge.before,
        }
        return tensors, meta

    def _expected(self) -> dict[str, Like]:
        """The tensors that a checkpoint of this training has, by name."""
        extra = extra_states(getattr(self.trainee, "module", nn.Module()))
        found = {
            f"module.{name}": Like(t.dtype, None if name in extra else tuple(t.shape), name not in extra)
            for name, t in self.trainee.moving().items()
        }
        for i, p in enumerate(self.parameters):
            state = state_like(self.recipe.optimiser, p)
            names = frozenset(f"optimiser.{i}.{name}" for name in state)
            for name, t in state.items():  # a weight that had no gradient yet has no state
                found[f"optimiser.{i}.{name}"] = Like(t.dtype, tuple(t.shape), self.heard is not None, names)
        for name, t in getattr(self.trainee, "unmoved", dict)().items():
            found.setdefault(f"module.{name}", Like(t.dtype, tuple(t.shape), needed=False))
        if self.heard is not None:
            found["heard"] = Like(torch.bool, tuple(self.heard.shape))
            moment = Curvature(self.heard.numel(), "meta").moment
            found["curvature"] = Like(moment.dtype, tuple(moment.shape), needed=False)
        return found

    def _check(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], rounds: bool) -> None:
        """Raise SubcompressError if the numbers of a checkpoint are not those of this training."""
        step, epochs, settings, now = meta["step"], len(meta["curve"]), meta["settings"], self.trainee.settings()
        counts = [float(t) for name, t in tensors.items() if name.startswith("optimiser.") and name.endswith(".step")]
        self.schedule.last_epoch = min(step, self.schedule.total_steps)
        lr = scheduled(self.schedule)
        beta, other = self.optimizer.param_groups[0]["betas"]
        observed = rounds and self.heard is not None and self.begin_observing < step <= self.begin_rounding
        missing = "missing" if observed else "not expected"
        rules = [
            (1 <= epochs <= self.recipe.epochs, f"curve: expected 1 to {self.recipe.epochs} values, got {epochs}"),
            (step == epochs * self.steps_per_epoch, f"step: expected {epochs * self.steps_per_epoch}, got {step}"),
            (math.isclose(meta["lr"], lr, rel_tol=1e-6), f"lr: expected {lr:.6g}, got {meta['lr']:.6g}"),
            (math.isclose(meta["betas"][0], beta, rel_tol=1e-6), f"betas: expected {beta:.6g}, got {meta['betas']}"),
            (meta["betas"][1] == other, f"betas: expected {other:.6g}, got {meta['betas']}"),
            (len(meta["losses"]) == min(step, WINDOW), f"losses: expected {min(step, WINDOW)} values"),
            (all(0 <= n <= step for n in counts), f"optimiser: step: expected 0 to {step}, got {counts[:3]}"),
            (
                settings.keys() == now.keys(),
                f"settings: expected {', '.join(now) or 'none'}, got {shown(', '.join(settings))}",
            ),
        ]
        rules.append((("curvature" in tensors) == observed, f"curvature: {missing} at step {step} of {self.total}"))
        for holds, rule in rules:
            if not holds:
                raise SubcompressError(rule)
        if "bits" in settings and bool(settings["bits"]) != (rounds and step > self.begin_rounding):
            raise SubcompressError(f"settings: bits: got {settings['bits']} at step {step} of {self.total}")

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any], rounds: bool) -> None:
        self._check(tensors, meta, rounds)
        with torch.no_grad():
            moving = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
            self.trainee.restore(moving, meta["settings"])
        for name, t in tensors.items():
            if name.startswith("optimiser."):
                _, i, key = name.split(".")
                fused = self.optimizer.defaults.get("fused", True)
                self.optimizer.state[self.parameters[int(i)]][key] = (
                    t if key == "step" and not fused else t.to(self.device)
                )
        self.heard = None if self.heard is None else tensors["heard"].to(self.device)
        if "curvature" in tensors:
            self.curvature = Curvature(self.parameters[0].numel(), self.device)
            self.curvature.moment.copy_(tensors["curvature"])
        group = self.optimizer.param_groups[0]
        group["lr"], group["betas"] = meta["lr"], tuple(meta["betas"])
        self.schedule.last_epoch = meta["step"]
        self.step, self.before, self.curve = meta["step"], meta["seconds"], list(meta["curve"])
        self.judge.recent.extend(torch.tensor(x) for x in meta["losses"])
        self.judge.worst, self.judge.before = meta["worst"], meta["before"]


def _says(hopeless: Callable[[tuple[float, ...]], bool] | None, curve: tuple[float, ...]) -> bool:
    return hopeless is not None and hopeless(curve)


def _check_batch(batch: tuple[Tree, Tree]) -> None:
    if not all(is_finite(t) for t in tensors_in(batch)):
        raise SubcompressError("the training split holds nan or inf: clean it")


__all__ = [
    "EPOCHS",
    "PRECISIONS",
    "WINDOW",
    "Checkpoint",
    "DeadRunError",
    "Direct",
    "Like",
    "Outcome",
    "Quantize",
    "TrainOptions",
    "Trainee",
    "check_recipe",
    "epochs_of",
    "train",
]
