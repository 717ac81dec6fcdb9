"""One network on one data set under one set of options: its trainings, each remembered in the run folder, and what is
kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.base import OnBase
from subcompress.data import Data
from subcompress.data.parts import in_parts
from subcompress.data.splits import batches, call, size, without_graph
from subcompress.errors import SubcompressError, shown
from subcompress.format.record import Record
from subcompress.format.versions import about
from subcompress.operators import EXACT
from subcompress.subspace.copying import copied
from subcompress.subspace.hidden import check_state
from subcompress.subspace.measuring import BASED_RATES, RATES, examples_of, measured, steps_of, steps_of_each
from subcompress.subspace.module import Subspace
from subcompress.subspace.moves import Moves
from subcompress.subspace.observing import Build
from subcompress.subspace.plan import Plan, check_options, make_plan
from subcompress.subspace.roles import looks_trained
from subcompress.subspace.seeds import seed_everything
from subcompress.subspace.standing import Copies
from subcompress.subspace.starts import Start, buffer_note, frozen_note, moving_weights, recognize
from subcompress.support.listener import Listener
from subcompress.support.names import AUTO
from subcompress.tensors.layout import Layout
from subcompress.training import likeness, records
from subcompress.training.attempts import Attempt, Attempts, DiedTwiceError
from subcompress.training.checkpointing import checkpointed
from subcompress.training.command import Network, command_of
from subcompress.training.fit_warnings import nothing_learned, unnamed_base, warnings_of
from subcompress.training.kept import Kept, kept_of, sizes_for
from subcompress.training.loop import Checkpoint, DeadRunError, Direct, Outcome, TrainOptions, check_recipe, train
from subcompress.training.preflight import check_first_batch, check_trains, estimate_cost
from subcompress.training.pressure import Pressure
from subcompress.training.probe import Fit, Probe, training_key
from subcompress.training.run import DISCARD, JOURNAL, Run
from subcompress.training.settings import BASED_BASELINE_RATES, BASELINE_RATES, Settings, usual_lr
from subcompress.training.sharding import NoCheckpoint, Shards, WorkerLostError
from subcompress.training.tasks import Task, evaluate

TIGHT = 0.85
"""The share of their room that coordinates may take when rounding begins, where each weight has one. They take more in
the end: training finds a use for some that were zero."""

SNUG = 0.99
"""The same share for fewer coordinates than weights: they hardly change after they are rounded."""

MOVES = "moves"
"""The name of the measurement of moves in the run folder."""

KNOWN = 1_000
"""The most examples of the validation split that show whether a network is trained already."""

LONG = 1.0
"""The log states the time of a check before training if it took at least this many seconds."""


@dataclass(frozen=True)
class Shared:
    """A training as workers tell one another of it. room: see `Fitter.probe`; moves: what the plan needs to know
    of the network."""

    d: int
    seed: int
    recipe: TrainOptions
    room: int | None
    moves: Moves | None


class Fitter:
    """Trains one network on one data set under one set of options, in a run folder that remembers each training."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        task: Task,
        settings: Settings,
        listener: Listener,
        base: OnBase | None = None,
        build: Build | None = None,
        device_line: str = "",
        shards: Shards | None = None,
    ) -> None:
        model = checkpointed(model) if settings.checkpointing else model
        self.model, self.data, self.task, self.settings, self.listener = model, data, task, settings, listener
        self.base, self.build, self.device_line = base, build, device_line
        self.shards = shards or Shards(settings.shards)
        s = settings
        check_options(s.bits, s.seed, s.operator)
        self.known = recognize(model, s.structured, base, s.act_on, build=build, seed=s.seed, drop=s.drop)
        self.layout, self.starts = self.known.layout, self.known.of()
        self.copies = Copies(model, self.layout, self.starts, base, s.device)
        self.moves: Moves | None = None
        self.warnings: list[str] = []
        self.least, self.exact = 1, s.operator in (AUTO, *EXACT)
        self.lines = self.plan(1, s.seed).lines()
        self.run: Run | None = None
        self.sizes = sizes_for(data, task)

    @property
    def operator(self) -> str:
        """The one that is asked for, or that suits how the weights move."""
        if self.settings.operator != AUTO:
            return self.settings.operator
        return "hadamard" if self.moves is None else self.moves.operator

    @property
    def D(self) -> int:
        """Weights that coordinates act on."""
        return moving_weights(self.layout, self.known.of(self._still))

    @property
    def _still(self) -> Mapping[str, np.ndarray] | None:
        return None if self.moves is None else self.moves.still

    def plan(self, d: int, seed: int) -> Plan:
        """The plan of d coordinates under that seed."""
        s = self.settings
        scales = None if self.moves is None else self.moves.scales(self.known, d, rounded=s.rounded)
        return make_plan(
            self.known,
            d,
            bits=s.bits,
            seed=seed,
            operator=self.operator,
            base=self.base,
            scales=scales,
            still=self._still,
        )

    def warn(self, text: str) -> None:
        """A line for the log, the run's JSON and the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.listener.note(f"warning: {text}")

    def possible(self, d: int) -> int:
        """The nearest number of coordinates, at or below d where there is one, that a plan takes."""
        for k in (*range(min(max(d, self.least), self.D), self.least, -1), self.least):
            try:
                self.plan(k, self.settings.seed)
            except SubcompressError:
                continue
            return k
        return self.least

    def lowered(self, d: int) -> int:
        """d, or D where that is less, with a warning."""
        if d > self.D:
            self.warn(f"--d {d} is more than the D = {self.D} weights that can be trained: it is lowered to D")
        return min(d, self.D)

    def beside(self) -> int:
        """Bytes of a file without its coordinates and without running statistics, which are not known yet."""
        plan = self.plan(self.least, self.settings.seed)
        module = copied(self.model, "cpu", shared=self.copies.held)
        subspace = Subspace(module, plan, own=True, still=self.copies.still)
        subspace.round(self.settings.bits)
        return self.sizes(subspace.record())[0]

    def check(self, d: int) -> None:
        """Raise SubcompressError for options and data that cannot be trained with, before anything is written."""
        with self._saying("checked that the examples of each split pass through the network"):
            self._check(d)

    @contextmanager
    def _saying(self, done: str) -> Iterator[None]:
        """Say what was done before training, and how long it took, where that is long."""
        began = time.perf_counter()
        yield
        if (seconds := time.perf_counter() - began) > LONG:
            self.listener.note(f"{done}: {seconds:.1f} s")

    def _check(self, d: int) -> None:
        plan = self.plan(d, self.settings.seed)
        recipe = self._recipe(plan, self.settings.seed)
        check_recipe(recipe, size(self.data.train))
        module = self.copies.to_look_at()
        check_first_batch(module, self.data, self.task, self.settings.batch_size, self.settings.device)
        if self.build is not None and self.base is None:
            x, _ = next(batches(self.data.validation, min(8, size(self.data.validation))))
            check_state(self.model, self.build, self.settings.seed, x)
        warning = check_trains(Subspace(module, plan, own=True), self.model, self.data, self.task, recipe)
        if warning is not None:
            self.warn(warning)
        self.copies.restored()

    def command(self) -> dict[str, Any]:
        """What makes two commands the same; see `subcompress.training.command`."""
        network = Network(self.model, self.known, self.lines, self.base, self.exact)
        return command_of(network, self.data, self.task, self.settings)

    @cached_property
    def outputs(self) -> likeness.Outputs | None:
        """What the network gives for a few examples from a fixed start."""
        with self._saying(f"kept outputs for {likeness.EXAMPLES} examples, which tell this network from others"):
            return likeness.outputs_of(
                self.model, self.plan(self.least, self.settings.seed), self.data, self.copies.held
            )

    def begin(self, folder: Run, restart: bool, noise: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        """Take the folder; say how tensors start and what frozen ones cost. noise: see `Run.begin`."""
        self.run = folder
        if folder.begin(restart, noise):
            likeness.go_on(folder.path, self.outputs)
            self.listener.note(f"continuing the run in {folder.path}")
        else:
            likeness.keep(folder.path, self.outputs)
        if self.device_line:
            self.listener.note(self.device_line)
        for line in self.lines:
            self.listener.note(f"start: {line}")
        self._say(self.known.notes)
        if self.base is not None:
            self.listener.note(_standing_note(self.base, self.layout, self.starts, self.D))
            self._say(self.base.base.notes)
            if self.settings.rounded and (warning := unnamed_base(self.base.base)) is not None:
                self.warn(warning)
        elif looks_trained(self.model) or self._knows():
            self.warn(
                "this network looks trained, but a fit starts from random weights: give --base FILE to start "
                "from its weights"
            )
        for warning in (
            frozen_note(self.model, self.starts),
            buffer_note(self.model.state_dict(), self.starts),
        ):
            if warning is not None:
                self.warn(warning)

    def _say(self, notes: Iterable[str]) -> None:
        for note in notes:
            if note.startswith("warning: "):
                self.warn(note.removeprefix("warning: "))
            else:
                self.listener.note(note)

    def measure(self) -> None:
        """See how far each tensor moves, once for all trainings of the run, and say what that shows."""
        with self._run.worker.alone(MOVES):
            self._run.refresh()
            if MOVES not in self._run.journal:
                self.listener.note(f"measuring how far each tensor moves in direct training: {self._measuring()}")
                self._run.note(MOVES, self._measured().to_json())
        self.moves = found = self._checked_moves(self._run.journal[MOVES])
        self.starts = self.known.of(found.still)
        how = (
            f"Adam {found.rate:g}"
            if found.rate
            else "no step size lowered the loss: the scales are guessed from the initial values"
        )
        self.listener.note(
            f"measured: {found.steps} steps of direct training in {found.seconds:.1f} s ({how}), operator "
            f"{self.operator}"
        )
        if not found.rate:
            self.warn(
                "direct training lowers the loss with none of the step sizes tried, so that it was not "
                "measured how far tensors move: check the loss, the data and the initial values"
            )
        if found.unread:
            reals = sum(len(found.still[n]) for n in found.unread)
            self.warn(
                f"no training batch reads {_some(found.unread)}: {reals} weights are left out of D and keep "
                "their initial values"
            )

    def _measuring(self) -> str:
        """What the measurement costs."""
        steps = steps_of(self.settings.recipe(self.settings.seed).total(size(self.data.train)))
        if self.base is None:
            return f"{steps} steps, and again with another step size if the loss does not fall"
        return f"{steps_of_each(steps)} steps with each of 2 to {len(BASED_RATES)} step sizes"

    def _checked_moves(self, held: dict[str, Any]) -> Moves:
        """The moves of a journal. Raises SubcompressError for those of another network."""
        reals = {spec.name: spec.reals for spec in self.layout}
        where = f"{self._run.path / JOURNAL}: {MOVES}"
        for name, (n, _) in held["still"].items():
            if reals.get(name) != n:  # before as many are unpacked
                raise SubcompressError(
                    f"{where}: still: {shown(name)}: expected {reals.get(name, 0)} values, got {n}: {DISCARD}"
                )
        if other := set(held["unread"]) - held["still"].keys():
            raise SubcompressError(f"{where}: unread: {shown(min(other))} is not in still: {DISCARD}")
        try:
            found = Moves.from_json(held)
            found.check(self.known)
        except (ValueError, SubcompressError) as e:
            raise SubcompressError(f"{where}: {e}: {DISCARD}") from e
        return found

    def _measured(self) -> Moves:
        s, task = self.settings, self.task
        device = torch.device(s.device)
        n = size(self.data.train)
        per_epoch = max(1, n // s.batch_size)
        steps = steps_of(s.recipe(s.seed).total(n))

        def passes(whole: bool) -> Iterator[Iterable[Any]]:
            order = torch.Generator().manual_seed(s.seed & ((1 << 63) - 1))
            while True:
                shuffled = torch.randperm(n, generator=order)
                used = shuffled if whole else shuffled[: max(per_epoch * s.batch_size, min(n, s.batch_size))]
                each = max(1, s.batch_size // s.accumulate)
                found = batches(self.data.train, each, device, used)
                yield in_parts(found, s.accumulate, task.weight) if s.accumulate > 1 else found

        recipe = s.recipe(s.seed)

        def loss_of(module: nn.Module, batch: Any) -> Tensor:
            with recipe.autocast(device):
                return task.loss_of(module, batch)

        return measured(
            self.copies.placed,
            self.known,
            examples_of(passes),
            loss_of,
            seed=s.seed,
            steps=steps,
            rates=RATES if self.base is None else BASED_RATES,
            based=self.base is not None,
            still=self.copies.still,
        )

    def say_cost(self, d: int, fits: float, minutes: float = math.inf) -> None:
        """Time a step, and say what the whole will take."""
        plan = self.plan(d, self.settings.seed)
        subspace = self._subspace(plan)
        recipe = self._recipe(plan, self.settings.seed)
        self.listener.note(estimate_cost(subspace, self.data, self.task, recipe, fits, minutes))

    @property
    def short_epochs(self) -> int:
        """Epochs of a short training."""
        return self.settings.short_epochs(size(self.data.train))

    @property
    def short_steps(self) -> tuple[int, int]:
        """Steps of a short training, and of a whole one."""
        n, seed = size(self.data.train), self.settings.seed
        short, whole = self.settings.recipe(seed, epochs=self.short_epochs), self.settings.recipe(seed)
        return short.total(n), whole.total(n)

    @property
    def baseline_rates(self) -> tuple[float, ...]:
        """Adam's largest steps for the network trained directly, the usual one first."""
        return BASELINE_RATES if self.base is None else BASED_BASELINE_RATES

    def baseline(self, seed: int, lr: float | None = None, *, short: bool = False) -> Probe:
        """Train the network directly, in all of its weights, from its own start.

        Args:
            seed: Seed of the training.
            lr: Adam's largest step, None for the usual one.
            short: Train for `short_epochs`.

        Raises:
            DiedTwiceError: It died.
        """
        rate = self.baseline_rates[0] if lr is None else lr
        key = f"direct-s{seed}" + ("" if lr is None else f"-lr{lr:g}") + ("-short" if short else "")
        recipe = self.settings.recipe(seed, epochs=self.short_epochs if short else None, lr=rate)
        self.listener.run(f"trained directly, lr {rate:g}" + (", short" if short else ""), recipe.epochs)
        seed_everything(seed, 0)
        direct = Direct(self.copies.to_train())
        try:
            outcome = train(
                direct, self.data, self.task, recipe, listener=self.listener, checkpoint=self._run.checkpoint(key)
            )
        except DeadRunError as e:
            died = f"the direct training failed ({e}): give --baseline or --baseline-lr, or check the loss"
            self._run.note(f"{key}-died", {"epochs": 0, "seconds": e.seconds, "note": died})
            raise DiedTwiceError(died, 0, e.seconds) from e
        probe = Probe(0, seed, outcome.value, outcome.curve, recipe.epochs, outcome.seconds, lr=rate, short=short)
        return self._note(key, probe)

    def probe(
        self,
        d: int,
        seed: int,
        *,
        limit: int | None = None,
        room: int | None = None,
        short: bool = False,
        rate: float | None = None,
        hopeless: Callable[[tuple[float, ...]], bool] | None = None,
    ) -> Probe:
        """Train in d coordinates; a dead run is tried once more with a smaller step.

        Args:
            d: Number of coordinates.
            seed: Seed of the subspace and of the training.
            limit: Shorten the file to this many bytes.
            room: Press the coordinates into this many bytes, from the beginning of rounding on.
            short: Train for `short_epochs`, without a file.
            rate: The price of a bit, by default that of the options.
            hopeless: Whether to stop, by the metric after each epoch.

        Raises:
            DiedTwiceError: Both tries died.
        """
        key = training_key(d, seed, rate) + ("-short" if short else "")
        plan = self.plan(d, seed)
        priced = "" if rate is None else f", price {rate:g}"
        note = f"d = {d}{priced}, seed {seed}" + (", short" if short else "")
        attempts = Attempts(self._run, key, note, self._recipe(plan, seed, rate, short))
        for attempt in attempts:
            self.listener.run(attempt.note, attempt.options.epochs)
            try:
                options, told = attempt.options, attempt.note if attempt.remark else ""
                subspace, outcome = self._train(plan, options, attempt.key, hopeless, told, room)
            except DeadRunError as e:
                attempts.died(attempt, e)
                if attempt is attempts.first:
                    again = f"trained again from the start, at lr {attempts.second.options.lr:.2g}"
                    self.listener.note(f"warning: {attempt.note}: {e}: {again}")
                continue
            packs = plan.exact and self.settings.rounded and not outcome.stopped and not short
            kept = kept_of(subspace, self.sizes, limit) if packs else Kept()
            probe = self._probe(plan, seed, subspace, outcome, kept, attempt, attempts, short)
            took, usual = kept.coded - kept.statistics, subspace.rounding.usual
            probe = replace(probe, rate=rate, pressed=max(0, usual - took) if kept.coded and plan.d < self.D else 0)
            for remark in (*probe.warnings, *([kept.note] if kept.note else [])):
                self.listener.note(f"warning: {attempt.note}: {remark}")
            return self._note(key, probe, kept.record)
        raise AssertionError("attempts end with a result or an error")

    def _recipe(self, plan: Plan, seed: int, rate: float | None = None, short: bool = False) -> TrainOptions:
        """How to train in the plan's coordinates, with that price of a bit where one is given."""
        epochs = self.short_epochs if short else None
        recipe = self.settings.recipe(seed, plan, epochs)
        if self.settings.lr is None:
            recipe = replace(recipe, lr=usual_lr(plan, recipe.total(size(self.data.train))))
        recipe = recipe if rate is None else replace(recipe, rate=rate)
        return recipe.rounded_early() if recipe.rate or plan.d == self.D else recipe

    def _probe(
        self,
        plan: Plan,
        seed: int,
        subspace: Subspace,
        outcome: Outcome,
        kept: Kept,
        attempt: Attempt,
        attempts: Attempts,
        short: bool,
    ) -> Probe:
        """What is remembered of a training that has ended."""
        value = outcome.value if outcome.stopped else self._value(subspace, kept.record)
        judged = not outcome.stopped and not short
        return Probe(
            plan.d,
            seed,
            value,
            outcome.curve,
            attempts.epochs + len(outcome.curve),
            attempts.seconds + outcome.seconds,
            outcome.stopped,
            "; ".join(remark for remark in (attempt.remark, kept.note) if remark),
            0,
            attempt.options.lr,
            kept.other + kept.coded,
            kept.coded,
            tuple(self._warnings(outcome, plan.d, value, kept)) if judged else (),
            kept.statistics,
            kept.cut,
            short,
        )

    def _warnings(self, outcome: Outcome, d: int, value: float, kept: Kept) -> Iterator[str]:
        whole = kept.record is not None and not kept.cut
        examples = size(self.data.validation)
        rounded = kept.record is not None
        return warnings_of(self.task, outcome, d, value, self._constant, whole, examples, rounded)

    def _knows(self) -> bool:
        """Whether the network as it is given is far better than a constant answer."""
        constant, best = self._constant, 0.0 if self.task.minimise else 1.0
        if constant is None or not (self.task.minimise or self.task.metric_name.endswith("accuracy")):
            return False
        module = self.copies.to_look_at()
        with self._saying("checked whether the network is trained already"):
            value = evaluate(module, self.data.validation, self.task, most=KNOWN)
        return self.task.better(value, (constant + best) / 2)

    @cached_property
    def _constant(self) -> float | None:
        """The metric of the best constant answer on the validation split, None if it is not known."""
        device = torch.device(self.settings.device)
        module = self.copies.to_look_at().eval()
        try:
            x, _ = next(batches(self.data.validation, min(2, size(self.data.validation)), device))
            outputs = without_graph(lambda: call(module, x))
        except Exception:  # a loss of the user's own may need no forward of one input
            outputs = None
        return self.task.constant_value(self.data.train, self.data.validation, outputs)

    def finish(self, chosen: Probe, found: dict[str, Any], origin: dict[str, Any]) -> Fit:
        """Read the test split, once, and write the run. origin: what was asked for, in the asker's words. The seconds
        are those of all trainings, also of those before an interruption."""
        seconds = sum(float(entry["seconds"]) for key, entry in self._run.journal.items() if not key.endswith("-died"))
        s = self.settings
        key = training_key(chosen.d, chosen.seed, chosen.rate)
        plan = self.plan(chosen.d, chosen.seed)
        recipe = self._recipe(plan, chosen.seed, chosen.rate)
        recipe = recipe if chosen.lr is None else replace(recipe, lr=chosen.lr)
        record: Record | None = None
        if plan.exact:
            record = self._read(key, plan)
            test = evaluate(self.copies.rebuilt(record), self.data.test, self.task)
            accuracy = test if self.task.is_accuracy else None
            record = replace(record, facts=self.data.facts, test_accuracy=accuracy)
        else:
            subspace, _ = self._train(plan, recipe, key, None, "again, for the test split")
            subspace.eval()
            with torch.no_grad(), subspace.materialized() as module:
                test = evaluate(module, self.data.test, self.task)
        result = Fit(
            self._run.path,
            chosen.d,
            self.D,
            s.bits,
            chosen.seed,
            self.task.metric_name,
            chosen.value,
            test,
            seconds,
            self.operator,
            sum(self.sizes(record)) if record is not None else 0,
            warnings=(*self.warnings, *chosen.warnings),
            rate=chosen.rate,
            **self._judged(chosen, found),
        )
        self._run.finish(record, {"fit": result.to_json(), "recipe": asdict(recipe), **about(), "origin": origin})
        return result

    def nothing_learned(self, value: float) -> str | None:
        """A line where the metric is no better than that of a constant answer, None if it is better or that is not
        known."""
        return nothing_learned(self.task, value, self._constant, size(self.data.validation))

    def _judged(self, chosen: Probe, found: dict[str, Any]) -> dict[str, Any]:
        """The fields, and whether anything was learned."""
        if (why := self.nothing_learned(chosen.value)) is None:
            return found
        return found | {"learned": False, "failure": found.get("failure") or why}

    @property
    def _run(self) -> Run:
        assert self.run is not None, "begin() comes first"
        return self.run

    def _note(self, key: str, probe: Probe, record: Record | None = None) -> Probe:
        self._run.note(key, asdict(probe), record)
        return Probe.from_json(self._run.journal[key])  # another worker may have been faster

    def _train(
        self,
        plan: Plan,
        recipe: TrainOptions,
        key: str,
        hopeless: Callable[[tuple[float, ...]], bool] | None,
        note: str,
        room: int | None = None,
    ) -> tuple[Subspace, Outcome]:
        checkpoint = self._run.checkpoint(key)
        with self.shards.joined(Shared(plan.d, plan.seed, recipe, room, self.moves)):
            return self._train_in(plan, recipe, checkpoint, hopeless, note, room)

    def join(self, training: Shared) -> None:
        """Run this worker's shards of a training that the first worker has begun, which keeps what comes of it."""
        if training.moves is not None:
            self.moves, self.starts = training.moves, self.known.of(training.moves.still)
        plan = self.plan(training.d, training.seed)
        try:
            self._train_in(plan, training.recipe, NoCheckpoint(), None, "", training.room)
        except WorkerLostError:
            raise
        except (DeadRunError, SubcompressError):
            pass  # all workers met it, and the first one says what becomes of it

    def _train_in(
        self,
        plan: Plan,
        recipe: TrainOptions,
        checkpoint: Checkpoint,
        hopeless: Callable[[tuple[float, ...]], bool] | None,
        note: str,
        room: int | None,
    ) -> tuple[Subspace, Outcome]:
        """Train a subspace of that plan."""
        s = self.settings
        # With a coordinate a weight most may be zero. Fewer coordinates were chosen so that they nearly fit.
        fitting = None if room is None else round((TIGHT if plan.d == self.D else SNUG) * room)
        subspace = self._subspace(plan)
        outcome = train(
            subspace,
            self.data,
            self.task,
            recipe,
            quantize=(lambda seen: subspace.round(s.bits, fitting, seen)) if s.rounded else None,
            listener=self.listener,
            note=note,
            checkpoint=checkpoint,
            hopeless=hopeless,
            pressure=None if room is None else Pressure(subspace, room),
            shards=self.shards,
        )
        if changed := self.copies.restored():
            raise SubcompressError(
                f"the forward pass changed {changed[0]}, a weight that does not train, later than in the first "
                "batch: leave it alone, or make it a buffer"
            )
        if s.rounded and subspace.bits not in (s.bits, 0):
            where = getattr(checkpoint, "path", "the run folder")
            raise SubcompressError(f"{where} holds a checkpoint of {subspace.bits} bits, not {s.bits}: {DISCARD}")
        return subspace, outcome

    def _read(self, key: str, plan: Plan) -> Record:
        """The record of a training that has ended, with that plan. Raises SubcompressError for one of another."""
        base = None if self.base is None else self.base.base
        return records.read(self._run.probe(key), base, self.layout, plan, self.settings.bits)

    def _value(self, subspace: Subspace, record: Record | None) -> float:
        """The metric on the validation split: that of the rebuilt weights, if there will be a file."""
        if record is not None:
            return evaluate(self.copies.rebuilt(record), self.data.validation, self.task)
        subspace.eval()
        with torch.no_grad(), subspace.materialized() as module:
            return evaluate(module, self.data.validation, self.task)

    def _subspace(self, plan: Plan) -> Subspace:
        return Subspace(self.copies.to_look_at(), plan, own=True, still=self.copies.still)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _standing_note(base: OnBase, layout: Layout, starts: Mapping[str, Start], D: int) -> str:
    """Describe what comes from the base, what is new, and what of the base is not used. A tied tensor counts as its
    original."""
    new = [str(spec) for spec in layout if spec.name not in base and starts[spec.name].kind != "tied"]
    unused = [base.base.layout.tensors[i].name for i in base.reference.unused]
    words = f"on {base.reference.where}: {D} weights move"
    if base.reference.changes:
        words += f"; changes to the base: {base.reference.changes}"
    words += f"; new, from the seed: {', '.join(new[:4])}{' ...' if len(new) > 4 else ''}" if new else ""
    return words + (
        f"; tensors of the base that are not used: {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}"
        if unused
        else ""
    )


__all__ = ["Fitter"]
