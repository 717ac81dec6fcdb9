"""The options of a fit: how to train (Recipe), what to reach (Goal), what to start from (Base), where to compute
(Machine).

They hold what was asked for, unchecked: the rooms that use a value check it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from subcompress.errors import SubcompressError, shown
from subcompress.support.names import AUTO
from subcompress.support.suggestions import suggestion

if TYPE_CHECKING:
    from subcompress.training.tasks import Loss, Metric


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, and how the file is made.

    Args:
        loss: A name (cross-entropy, mse, l1, bce, next-token, per-token) or f(module, batch) -> scalar tensor. If the
            data name a loss that suits their labels, that takes the place of cross-entropy.
        metric: A name, `torchmetrics:NAME,option=value`, f(outputs, y) -> float over a whole split, or an object with
            `update(outputs, y)`, `compute()` and `reset()`. By default the metric that goes with the loss.
        minimize: Whether a smaller metric is better. By default what the metric declares, otherwise False.
        operator: The projection P from coordinates to weights. `auto` chooses hadamard for images and scattered for
            other inputs.
        structured: What to do with tensors that the network initializes as random orthogonal or sparse matrices.
            `random` replaces them with independent random values from the seed, `store` keeps their values in the file,
            `guess` judges all initial values from one build of the network.
        drop: Patterns of the names of buffers and frozen tensors to leave out of the file. They are rebuilt as zeros.
        bits: Bits of a coordinate before entropy coding, 2 to 8. By default 4, or 8 if d is at most 64.
        rate: What each bit of the coordinates adds to the loss in training. A higher rate gives a smaller file.
        epochs: Passes over the training split. By default 10.
        steps: Number of training steps, instead of `epochs`. The last pass may end early.
        batch_size: Examples in a training step.
        shards: Number of parts that each batch is cut into. Workers started by torchrun share them. The number changes
            the file; the number of workers does not.
        accumulate: Number of parts in which a batch, or each shard of it, passes through the network, one after the
            other. Memory holds the activations of one part; gradients are summed.
        checkpointing: Whether to save memory by computing the activations of a transformers model again in the backward
            pass.
        lr: Peak learning rate of the coordinates. By default 0.35 / (root mean square of the row lengths of P), and
            sqrt(4,000 / n) of it in n > 4,000 steps.
        optimizer: adam or eigen. With few coordinates, eigen reaches the same accuracy with fewer.
        precision: fp32 or bf16, for matrix products in training. Measurements and weights stay float32.
        seed: Seed of the subspace and of the training.
    """

    loss: str | Loss = "cross-entropy"
    metric: str | Metric | None = None
    minimize: bool | None = None
    operator: str = AUTO
    structured: str = "random"
    drop: Sequence[str] = ()
    bits: int | None = None
    rate: float = 0.0
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    shards: int = 1
    accumulate: int = 1
    checkpointing: bool = False
    lr: float | None = None
    optimizer: str = "adam"
    precision: str = "fp32"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What to reach. Give exactly one of the first five arguments, or `d` with `bytes`.

    The other arguments belong to `max_drop` or limit what a search may cost.

    Args:
        d: Run one training with this number of coordinates.
        min_accuracy: Find the smallest file with at least this validation accuracy, between 0 and 1.
        max_drop: Find the smallest file whose accuracy is at most this far below that of direct training (of all
            weights).
        target: Find the smallest file whose metric is at least this value (at most, if smaller is better).
        bytes: Find the best file of at most this size, where the whole file counts. With `d`, the file has exactly d
            coordinates.
        baseline: The result of direct training, for `max_drop`: its metric, or a safetensors file of the trained
            weights. By default `fit` trains the network directly.
        baseline_lr: The learning rate of the direct training for `max_drop`. By default the best of a few on the
            validation split.
        knob: What a search varies to meet a target. `d`: the number of coordinates. `price`: the price of a bit, with
            a coordinate for each weight, which suits networks of a few thousand weights.
        seeds: Number of trainings with different seeds, at the value that a search finds and near it. Their mean must
            meet the target.
        max_fits: The most that a search may cost, in full trainings. By default 8, plus 1 for each of `jobs` beyond the
            first, plus 2 if `max_drop` has to find its learning rate.
        max_minutes: Start no training that would end after this many minutes.
    """

    d: int | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None
    target: float | None = None
    bytes: int | None = None
    baseline: float | str | Path | None = None
    baseline_lr: float | None = None
    knob: str = "d"
    seeds: int = 3
    max_fits: float | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Base:
    """The public weights to fine-tune. The file names them but does not contain them.

    Args:
        source: A safetensors file, a torch state dict, a folder with either, `hub:ORG/NAME[@REV]`, a module, or a dict
            of tensors by name.
        name: The name of the base to write into the file, by which others find it: `hub:ORG/NAME[@COMMIT]`. By default
            the name of `source`.
        act_on: What to train on the base, separated by commas: roles (all, norms, biases, heads, embeddings, matrices)
            or patterns of tensor names. `lora[:rank]` trains two low-rank factors that are added to each linear layer,
            `sketch[:rank]` a small matrix between singular directions of the base's own weight; patterns of layers may
            follow either. By default norms, biases and heads.
        new: Patterns of the names of tensors that start from the seed instead of from the base. A head that the base
            lacks does so anyway.
    """

    source: Any = None
    name: str | None = None
    act_on: str | None = None
    new: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to compute.

    Args:
        device: auto, cpu, cuda or cuda:N. auto chooses CUDA if a kernel runs on it, otherwise the CPU, and a note says
            which.
        threads: CPU threads that torch uses. By default torch's own number, or 1 if a batch has several shards.
        workers: Number of processes that read examples ahead, for data that are not in memory. It does not change the
            file.
        jobs: Number of trainings to run at the same time. They share the CPU threads unless `threads` is given.
        executor: How to start the other workers of `jobs`: `processes` (on this machine), `ray` or `slurm`.
    """

    device: str = AUTO
    threads: int | None = None
    workers: int | None = None
    jobs: int = 1
    executor: str = "processes"


class RecipeShortcuts(TypedDict, total=False):
    """The fields of Recipe and Machine as keywords. `optimiser` and `minimise` are former spellings."""

    loss: str | Loss
    metric: str | Metric | None
    minimize: bool | None
    minimise: bool | None
    operator: str
    structured: str
    drop: Sequence[str]
    bits: int | None
    rate: float
    epochs: int | None
    steps: int | None
    batch_size: int
    shards: int
    accumulate: int
    checkpointing: bool
    lr: float | None
    optimizer: str
    optimiser: str
    precision: str
    seed: int
    device: str
    threads: int | None
    workers: int | None
    jobs: int
    executor: str


class Shortcuts(RecipeShortcuts, total=False):
    """The fields of Recipe, Goal, Base and Machine as keywords. `within` is the former name of `bytes`."""

    d: int | None
    min_accuracy: float | None
    max_drop: float | None
    target: float | None
    bytes: int | None
    within: int | None
    baseline: float | str | Path | None
    baseline_lr: float | None
    knob: str
    seeds: int
    max_fits: float | None
    max_minutes: float | None
    base_name: str | None
    act_on: str | None
    new: Sequence[str]


FORMER = {"minimise": "minimize", "optimiser": "optimizer", "within": "bytes"}
"""Former names of keywords, which keep working."""

RENAMED = {"base_name": "name"}
"""Keywords whose names differ from those of their fields."""

NUMBERS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}
"""Annotation -> the types that a field takes, including NumPy's, and their name in messages."""

EXCLUSIVE = (("d", "min_accuracy", "max_drop", "target", "bytes"), ("epochs", "steps"))
"""Fields of which only one can be given: a keyword replaces the others of an object."""

GROUPS: dict[str, type[Any]] = {"recipe": Recipe, "goal": Goal, "base": Base, "machine": Machine}
"""The objects by the name of their section in a recipe file."""

Group = TypeVar("Group", Recipe, Goal, Base, Machine)


@dataclass(frozen=True)
class Options:
    """All options of a fit, except the network and the data."""

    recipe: Recipe
    goal: Goal
    base: Base
    machine: Machine


def options_of(
    caller: str,
    keywords: Mapping[str, Any],
    *,
    recipe: Recipe | None = None,
    goal: Goal | None = None,
    base: Any = None,
    machine: Machine | None = None,
) -> Options:
    """The objects that are given, changed by the keywords that are given beside them.

    Args:
        caller: The function that was called, for the message.
        keywords: See `Shortcuts`.
        recipe: None for the defaults, as for `goal` and `machine`.
        base: A Base, or its source.

    Raises:
        SubcompressError: A keyword that there is not, a keyword under its present and its former name, or an object of
            another class.
    """
    given = _present_names(caller, keywords)
    base = base if isinstance(base, Base) or base is None else Base(source=base)
    found = Options(
        _changed(recipe, Recipe, "recipe", given),
        _changed(goal, Goal, "goal", given),
        _changed(base, Base, "base", given),
        _changed(machine, Machine, "machine", given),
    )
    _check_numbers(found)
    if given:
        known = [*(f.name for kind in GROUPS.values() for f in fields(kind)), *RENAMED]
        name = next(iter(given))
        raise SubcompressError(f"{caller}() has no option {name!r}{suggestion(name, known)}")
    return found


def _check_numbers(options: Options) -> None:
    """Raise SubcompressError for a field that takes a number, or true or false, and holds something else."""
    for held in (options.recipe, options.goal, options.machine):
        for field in fields(held):
            check_number(field.name, getattr(held, field.name), str(field.type))


def check_number(name: str, value: Any, kind: str) -> None:
    """Raise SubcompressError unless the value is of that kind, or None if the kind has it.

    name: that of the option; kind: an annotation as it is written, such as `int | None`. One that allows more than
    numbers is not checked.
    """
    plain, _, optional = kind.partition(" | ")
    if plain not in NUMBERS or optional not in ("", "None") or (value is None and optional):
        return
    accepted, words = NUMBERS[plain]
    if not isinstance(value, accepted) or (plain != "bool" and isinstance(value, bool)):
        raise SubcompressError(f"{name} must be {words}; got {shown(repr(value))}")


def _present_names(caller: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords under their present names."""
    given = dict(keywords)
    for former, name in FORMER.items():
        if former in given:
            if name in given:
                raise SubcompressError(f"{caller}() was given {former} and {name}, which are one option: leave one out")
            given[name] = given.pop(former)
    return given


def _changed(held: Group | None, kind: type[Group], section: str, given: dict[str, Any]) -> Group:
    """The object, or the defaults, with its own keywords taken out of `given`."""
    if held is not None and not isinstance(held, kind):
        raise SubcompressError(f"{section} must be a subcompress.{kind.__name__}; got {type(held).__name__}")
    keywords = {name: name for name in (f.name for f in fields(kind))}
    if kind is Base:  # `name` and `source` alone would be unclear beside the options of everything else
        keywords = {"base_name": "name", "act_on": "act_on", "new": "new"}
    own = {field: given.pop(keyword) for keyword, field in keywords.items() if keyword in given}
    for names in EXCLUSIVE:
        if any(own.get(name) is not None for name in names):
            own = {name: None for name in names if name in keywords} | own
    return replace(held if held is not None else kind(), **own)


__all__ = ["GROUPS", "Base", "Goal", "Machine", "Options", "Recipe", "RecipeShortcuts", "Shortcuts", "options_of"]
