"""From what a caller gives to a Fitter that can train: the steps that `fit` and `measure_dimension` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from subcompress.base import attach_base, open_base
from subcompress.data import Data
from subcompress.data.splits import size
from subcompress.errors import SubcompressError
from subcompress.subspace.observing import built
from subcompress.subspace.standing import standing
from subcompress.support.devices import choose_device
from subcompress.support.listener import Listener
from subcompress.support.names import DEFAULT_ROLES
from subcompress.support.world import local_rank
from subcompress.support.world import workers as world_size
from subcompress.training.fitter import Fitter
from subcompress.training.loop import epochs_of
from subcompress.training.machine import machine
from subcompress.training.options import Base, Machine, Options, Recipe
from subcompress.training.preflight import naming_memory
from subcompress.training.settings import Settings
from subcompress.training.sharding import Shards
from subcompress.training.tasks import Task

MAX_JOBS = 256

FEW = 64
"""Coordinates up to which more bits cost less than what coarse rounding loses."""


def task_of(recipe: Recipe, data: Data) -> Task:
    """The loss and the metric. Raises SubcompressError for names that there are not."""
    return Task.suiting(data, recipe.loss, recipe.metric, recipe.minimize)


def bits_of(d: int | None) -> int:
    """The default number of bits of a coordinate."""
    return 8 if d is not None and d <= FEW else 4


def divided(machine: Machine) -> Machine:
    """The machine, with its CPU threads divided among the trainings that run at a time. Raises SubcompressError."""
    if not 1 <= machine.jobs <= MAX_JOBS:
        raise SubcompressError(f"--jobs must be between 1 and {MAX_JOBS}; got {machine.jobs}")
    if machine.jobs > 1 and world_size() > 1:
        raise SubcompressError(
            f"--jobs cannot be combined with torchrun, which started {world_size()} workers: leave it out"
        )
    if machine.jobs == 1 or machine.threads is not None:
        return machine
    return replace(machine, threads=max(1, (os.cpu_count() or 1) // machine.jobs))


def check_base_options(base: Base) -> None:
    """Raise SubcompressError for options of a base if there is no base."""
    if base.source is None and (base.act_on is not None or base.name is not None or base.new):
        raise SubcompressError("--act-on, --base-name and --new need a base: give --base, or leave them out")


@contextmanager
def prepared(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    options: Options,
    task: Task,
    listener: Listener,
    rounded: bool = True,
    shards: Shards | None = None,
) -> Iterator[Fitter]:
    """Check the network, the data and the options, set the machine up, and yield the Fitter that trains.

    Args:
        model: The network, or a function without arguments that builds it.
        data: As `as_data` gives them, with labels as `task` takes them.
        options: The options; of the goal, only `d` is used.
        task: What `task_of` gave for the recipe.
        listener: Receives progress.
        rounded: Whether coordinates are rounded to bits, as in a file.
        shards: The workers that share each batch. By default this process alone.

    Raises:
        SubcompressError: Options, data or a network that cannot be trained with.
    """
    recipe, base = options.recipe, options.base
    model, build = built(model, recipe.seed, listener.note)
    for line in data.notes:
        listener.note(line)
    shards = shards or Shards(recipe.shards)
    place = choose_device(options.machine.device)
    if place.name == "cuda" and shards.workers > 1 and (own := local_rank()):
        place = choose_device(f"cuda:{own}")
    settings = settings_of(options, size(data.train), place.name, rounded)
    on_base = None
    if base.source is not None:
        on_base = attach_base(open_base(base.source, base.name), model, tuple(base.new))
        model = standing(model, on_base)
    threads = 1 if options.machine.threads is None and recipe.shards > 1 else options.machine.threads
    with machine(place.name, threads, recipe.seed), naming_memory(recipe.batch_size):
        fitter = Fitter(model, data, task, settings, listener, on_base, build, place.line, shards)
        shards.meet(torch.device(place.name))
        yield fitter


def settings_of(options: Options, examples: int, device: str, rounded: bool) -> Settings:
    """The options that all trainings of a run share, with defaults filled in."""
    recipe = options.recipe
    return Settings(
        bits=bits_of(options.goal.d) if recipe.bits is None else recipe.bits,
        epochs=epochs_of(recipe.epochs, recipe.steps, examples, recipe.batch_size),
        seed=recipe.seed,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        device=device,
        operator=recipe.operator,
        structured=recipe.structured,
        rounded=rounded,
        rate=recipe.rate,
        optimiser=recipe.optimizer,
        act_on=options.base.act_on or DEFAULT_ROLES,
        precision=recipe.precision,
        drop=tuple(recipe.drop),
        steps=recipe.steps,
        shards=recipe.shards,
        accumulate=recipe.accumulate,
        checkpointing=recipe.checkpointing,
    )
