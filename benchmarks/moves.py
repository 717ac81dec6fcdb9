"""How far should a unit of a coordinate move each tensor? Rules for the scales, each on many networks.

    python benchmarks/moves.py [--networks fno,s4d] [--rules guessed,measured:d] [--seeds 3] [--steps 30,100,300]
        [--lrs 1e-3,3e-3] [--mnist DIR] [--runs runs/moves.jsonl]
    python benchmarks/moves.py --table [--runs runs/moves.jsonl] [-o benchmarks/results]

theta_t = start_t + scale_t (P z)_t for every tensor t, start_t as a fit has it. r_t is the root mean square change of
tensor t over N steps of direct Adam at a constant step. Rules:

    guessed      what `make_plan` gives without moves: deviation of the start / 4
    measured:k   k r_t; with k = d what a fit takes, (D / (30 d)) ** (1 / 8); with k = ^p, (D / (30 d)) ** p
    floor:k      max(guessed, k r_t / 4)
    mean:k       sqrt(guessed * k r_t)
    direct       trained in all weights instead, with the best of a few steps: what the others are measured by

Networks are those of benchmarks/families/, LeNet on the embedded digits, and with --mnist the MLP and LeNet on MNIST.
Every run is one line of JSON in the file, appended when it ends; runs that it holds are not trained again, so that an
interrupted command goes on, and several commands may share a file if their networks differ. Validation split, 4 bits,
one thread. Everything is a day on one core; a network takes 43 runs a seed, 5 to 20 seconds each.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from families import FAMILIES, Family
from families.direct import adam, best_direct, made, orders
from families.family import Batch, Splits, accuracy, named_starts, reals, rows, stacked
from torch import nn
from torch.utils.data import TensorDataset

from subcompress import Subspace, load_data
from subcompress.subspace.moves import POWER, USUAL
from subcompress.subspace.plan import Plan
from subcompress_models import MODELS

RULES = (
    "direct",
    "guessed",
    "measured:d",
    "measured:^0.25",
    "measured:^0.5",
    "measured:0.5",
    "measured:1",
    "measured:2",
    "measured:4",
    "floor:1",
    "floor:4",
    "mean:1",
)
BITS = 4
LEAST = 2.0**-40
"""The smallest scale, which a tensor without a gradient gets."""


@dataclass(frozen=True)
class Run:
    """One training. rule: see above; steps, lr: how r was measured, zero for rules that need no r."""

    network: str
    rule: str
    steps: int
    lr: float
    seed: int


# Networks


def networks(mnist: Path | None) -> dict[str, Family]:
    """Those that can be trained, by name."""
    found = {name: family for name, family in FAMILIES.items() if not family.error}
    found["digits-lenet"] = _model("digits-lenet", "lenet", "digits", None, d=600, epochs=6, batch_size=64)
    if mnist is not None:
        found["mnist-mlp"] = _model("mnist-mlp", "mlp", "mnist", mnist, d=450, epochs=3, batch_size=128)
        found["mnist-lenet"] = _model("mnist-lenet", "lenet", "mnist", mnist, d=290, epochs=2, batch_size=128)
    return found


def _model(name: str, model: str, data: str, folder: Path | None, *, d: int, epochs: int, batch_size: int) -> Family:
    def load() -> Splits:
        held = load_data(data, folder)
        a, b, c = (TensorDataset(s.x, s.y) for s in (held.train, held.validation, held.test))  # type: ignore[attr-defined]
        return a, b, c

    return Family(name, MODELS[model], load, d=d, epochs=epochs, batch_size=batch_size, metric=accuracy)


# Rules


def planned(family: Family, net: nn.Module, seed: int) -> Plan:
    """The plan of a fit, with scales that are guessed from the starts."""
    based = {} if family.base is None else {"base": family.base(), "act_on": family.options["act_on"]}
    d = family.d or sum(len(reals(p)) for p in net.parameters())
    # On a base the network brings its weights; a factory would be built without them.
    return Subspace.of(net if based else family.make_net, d, bits=BITS, seed=seed, **based).plan


def with_scales(plan: Plan, scales: Mapping[str, float]) -> Plan:
    """The plan with those scales. The one place that knows how a plan holds them."""
    parts = (replace(p, scales=tuple(scales[tensor_of(spec.name)] for spec in p.specs)) for p in plan.parts)
    return replace(plan, parts=tuple(parts))


def tensor_of(piece: str) -> str:
    """The tensor that a row of a part belongs to: pieces of one have its name and a number."""
    return piece.partition("\0")[0]


def scales_of(plan: Plan) -> dict[str, float]:
    """Tensor -> its scale without moves."""
    return {tensor_of(spec.name): s for part in plan.parts for spec, s in zip(part.specs, part.scales, strict=True)}


def ruled(rule: str, guessed: Mapping[str, float], r: Mapping[str, float], share: float) -> dict[str, float]:
    """Tensor -> its scale under a rule. r: how far each moved, empty for `guessed`; share: D / d."""
    kind, _, factor = rule.partition(":")
    if kind == "guessed":
        return dict(guessed)
    power = {"d": POWER}.get(factor, float(factor[1:]) if factor[:1] == "^" else None)
    k = float(factor) if power is None else (share / USUAL) ** power
    rules = {
        "measured": lambda old, r: k * r,
        "floor": lambda old, r: max(old, k * r / 4),
        "mean": lambda old, r: math.sqrt(old * k * r),
    }
    return {name: max(rules[kind](old, r[name]), LEAST) for name, old in guessed.items()}


# Trainings


@cache
def start(family: Family, seed: int) -> tuple[nn.Module, tuple[Batch, ...]]:
    """The network as the seed starts it, never trained itself, and the data."""
    return made(family, seed), data_of(family)


@cache
def data_of(family: Family) -> tuple[Batch, ...]:
    """The three splits, stacked."""
    return tuple(stacked(split) for split in family.load())


@cache
def moves(family: Family, steps: tuple[int, ...], lr: float, seed: int) -> dict[int, dict[str, float]]:
    """Return, after each of these numbers of steps of direct Adam, parameter -> r (of its real numbers)."""
    net, (data, *_) = start(family, seed)
    model, before = copy.deepcopy(net).train(), {n: reals(p) for n, p in named_starts(net).items()}
    optimizer, found = adam(model, lr), {}
    n = len(data[1])
    epochs = 1 + max(steps) // (n // family.batch_size)
    torch.manual_seed(seed)
    for step, i in enumerate(orders(n, family.batch_size, epochs, seed + 1000), 1):
        if step > max(steps):
            break
        optimizer.zero_grad()
        family.loss_of(model, rows(data, i)).backward()
        optimizer.step()
        if step in steps:
            apart = {n: reals(p) - before[n] for n, p in model.named_parameters()}
            found[step] = {n: float(a.square().mean().sqrt()) for n, a in apart.items()}
    return found


def in_subspace(family: Family, net: nn.Module, plan: Plan, data: Sequence[Batch], seed: int) -> float:
    """The metric on the validation split after training in the plan's coordinates, rounded from half-way on."""
    subspace, (x, y) = Subspace(net, plan), data[0]
    subspace.train()
    total = len(y) // family.batch_size * family.epochs
    optimizer = torch.optim.Adam([subspace.z], lr=plan.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=total)
    torch.manual_seed(seed)
    for step, i in enumerate(orders(len(y), family.batch_size, family.epochs, seed)):
        if step == total // 2:
            subspace.round(BITS)
        # The gradients are computed inside: activation checkpointing runs forward again.
        with subspace.materialized() as module:
            optimizer.zero_grad()
            family.loss_of(module, rows((x, y), i)).backward()
        optimizer.step()
        schedule.step()
    subspace.eval()
    with torch.no_grad(), subspace.materialized() as module:
        return family.value(module, data[1])


def trained(family: Family, run: Run, steps: tuple[int, ...]) -> float:
    """The metric on the validation split of one run."""
    net, data = start(family, run.seed)
    if run.rule == "direct":
        return best_direct(family, data, run.seed).value
    plan = planned(family, net, run.seed)
    r = moves(family, steps, run.lr, run.seed)[run.steps] if run.steps else {}
    return in_subspace(
        family, net, with_scales(plan, ruled(run.rule, scales_of(plan), r, plan.D / plan.d)), data, run.seed
    )


# The file of runs


def wanted(
    names: Sequence[str], rules: Sequence[str], steps: Sequence[int], lrs: Sequence[float], seeds: int
) -> Iterator[Run]:
    """Every run; a network's first seed under all rules before its second, so that early tables say something."""
    for name in names:
        for seed in range(seeds):
            for rule in rules:
                if rule in ("direct", "guessed"):
                    yield Run(name, rule, 0, 0.0, seed)
                else:
                    yield from (Run(name, rule, n, lr, seed) for n in steps for lr in lrs)


def held(path: Path) -> dict[Run, float]:
    """The runs that a file holds; a last line that an interruption cut is passed over."""
    found: dict[Run, float] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Run(**{k: entry[k] for k in Run.__dataclass_fields__})] = entry["value"]
    return found


def note(path: Path, run: Run, value: float, seconds: float) -> None:
    """One more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_text().endswith("\n")  # by an interruption
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(asdict(run) | {"value": value, "seconds": round(seconds, 1)}) + "\n")


# The table


def median(values: Sequence[float], minimize: bool) -> float:
    """The median of values, where nan counts as the worst."""
    worst = math.inf if minimize else -math.inf
    return statistics.median(v if math.isfinite(v) else worst for v in values)


def share(value: float, direct: float, minimize: bool) -> float:
    """The share of direct training that is reached, at most 1: the ratio of the metrics, inverted for errors."""
    ratio = direct / value if minimize else value / direct
    return min(1.0, ratio) if math.isfinite(ratio) else 0.0


def table(runs: Mapping[Run, float], families: Mapping[str, Family]) -> Iterator[str]:
    """A row a rule, a column a network: medians over the seeds; then the worst and the median network's share of
    direct training, where that was trained."""
    groups: dict[tuple[str, int, float], dict[str, list[float]]] = {}
    for run, value in runs.items():
        groups.setdefault((run.rule, run.steps, run.lr), {}).setdefault(run.network, []).append(value)
    names = [n for n in families if any(run.network == n for run in runs)]
    less = {n: families[n].minimize for n in names}
    direct = {n: median(v, less[n]) for n, v in groups.get(("direct", 0, 0.0), {}).items() if n in less}
    # What direct training does better than the goal of a family is not asked of a fit: 1e-13 in place of 0.02.
    direct = {n: max(v, families[n].goal or v) if less[n] else v for n, v in direct.items()}
    yield "| rule | N | step | " + " | ".join(names) + " | worst share | median share |"
    yield "|---" * (len(names) + 5) + "|"
    order = {rule: i for i, rule in enumerate(RULES)}
    for key in sorted(groups, key=lambda g: (order.get(g[0], len(order)), *g)):
        found = {n: median(v, less[n]) for n, v in groups[key].items() if n in less}
        shares = [share(v, direct[n], less[n]) for n, v in found.items() if n in direct]
        cells = [f"{found[n]:.4g}" if n in found else "" for n in names]
        ends = [f"{min(shares):.3f}", f"{statistics.median(shares):.3f}"] if shares else ["", ""]
        yield "| " + " | ".join([key[0], f"{key[1] or ''}", f"{key[2]:g}" if key[2] else "", *cells, *ends]) + " |"


def work(options: argparse.Namespace, families: Mapping[str, Family]) -> None:
    """Train what the file does not hold yet."""
    names = options.networks.split(",") if options.networks else list(families)
    if unknown := [n for n in names if n not in families]:
        raise SystemExit(f"network must be one of {', '.join(families)}; got {unknown[0]!r} (MNIST's need --mnist)")
    steps, lrs = tuple(map(int, options.steps.split(","))), tuple(map(float, options.lrs.split(",")))
    done = held(options.runs)
    for run in wanted(names, options.rules.split(","), steps, lrs, options.seeds):
        if run in done:
            continue
        began, words = time.perf_counter(), f"{run.network} {run.rule} N={run.steps} lr={run.lr:g} seed={run.seed}"
        try:
            value = trained(families[run.network], run, steps)
        except Exception as e:  # one network must not end the night; it is tried again by the next command
            print(f"{words}: {type(e).__name__}: {' '.join(str(e).split())[:200]}", flush=True)
            continue
        note(options.runs, run, value, time.perf_counter() - began)
        print(f"{words}: {value:.4g}", flush=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="", help="names, separated by commas; all by default")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", default="30,100,300", help="N of the measurement")
    parser.add_argument("--lrs", default="1e-3,3e-3", help="Adam's step of the measurement")
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/moves.jsonl"), help="the file of finished runs")
    parser.add_argument("--table", action="store_true", help="print the medians of the runs that are there")
    parser.add_argument("-o", "--output", type=Path, help="write the table there, moves.md")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if not options.table:
        return work(options, networks(options.mnist))
    runs = held(options.runs)
    lines = list(table(runs, networks(options.mnist or Path("."))))
    print("\n".join(lines))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        title = f"# Moves, {len(runs)} runs, medians, one thread, {time.strftime('%Y-%m-%d')}"
        (options.output / "moves.md").write_text("\n".join([title, "", *lines, ""]))


if __name__ == "__main__":
    main()
