"""Networks as their authors write them: does training in a subspace reach what direct training reaches?

    python benchmarks/families.py [NAME...] [--seeds 1] [-o benchmarks/results] [--json] [--cases DIR]

One row a family (benchmarks/families/, one a file) and seed: d of its D weights, the metric on the validation split
after direct training (Adam with one cycle of the step, the best of a few largest steps; it is in brackets) and after
`subcompress.fit` with the same epochs, bytes of the whole file, and whether the goal of the family is met. Without a
goal of its own, that is 90 % of direct training, or at most twice its error. Each file is packed, loaded into a fresh
network and measured again in one call on the whole split, which must give what the fit reported. For one family an
error is the goal. The network is given to `fit` as a factory. --cases: more families, files of DIR that each hold a
FAMILY. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import runpy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, Family
from families.direct import Direct, best_direct, made
from families.family import Batch, Trained, named_starts, stacked

import subcompress
from subcompress import SubcompressError

HEADER = (
    "| family | D | d | metric | direct training (step) | in the subspace | bytes of the file | goal | met "
    "| warnings |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Row:
    """One fit and what it is measured against; seconds: of direct training, all steps, and of the fit."""

    family: str
    seed: int
    metric: str
    D: int = 0
    d: int = 0
    direct: float | None = None
    step: float | None = None
    value: float | None = None
    bytes: int = 0
    goal: str = ""
    met: bool = False
    error: str = ""
    wrong: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: tuple[float, float] = (0.0, 0.0)

    def markdown(self) -> str:
        """A row of the table."""
        name = self.family + (f", seed {self.seed}" if self.seed else "")
        direct = "" if self.direct is None else f"{self.direct:.4g} ({self.step:g})"
        value = self.error.replace("|", "\\|") if self.value is None else f"{self.value:.4g}"
        cells = (name, f"{self.D:,}", f"{self.d:,}", self.metric, direct, value, f"{self.bytes or ''}", self.goal)
        return "| " + " | ".join((*cells, "yes" if self.met else "**no**", f"{len(self.warnings)}")) + " |"


def weights_of(family: Family) -> int:
    """Real numbers of the parameters, tied ones once."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in family.make_net().parameters() if p.requires_grad)


def arguments(family: Family, seed: int) -> dict[str, Any]:
    """Arguments of `subcompress.fit`, except the network, the data and the folder."""
    minimize = "minimize" if "minimize" in inspect.signature(subcompress.fit).parameters else "minimise"
    based = {} if family.base is None else {"base": family.base()}
    return {
        "d": family.d or weights_of(family),
        "epochs": family.epochs,
        "batch_size": family.batch_size,
        "loss": family.loss,
        "metric": _metric(family),
        minimize: family.minimize,
        "seed": seed,
        "threads": 1,
        **based,
        **family.options,
    }


def _metric(family: Family) -> Any:
    """The metric as `fit` knows it: by its name where it has one, so that the file can hold a test accuracy."""
    name = getattr(family.metric, "__name__", None)
    return name if name in ("accuracy", "mse") else family.metric


def start_of(family: Family, d: int, seed: int) -> dict[str, torch.Tensor]:
    """Every trained tensor before the first step of a fit of that seed."""
    keys = ("act_on", "bits", "structured", "operator")
    options = {k: v for k, v in family.options.items() if k in keys}
    if family.base is not None:
        options["base"] = family.base()
    net = made(family, seed)
    subspace = subcompress.Subspace.of(net, d, seed=seed, **options)
    with torch.no_grad():
        subspace.z.zero_()
        return named_starts(net) | {name: w.detach().clone() for name, w in subspace.weights().items()}


def fitted(family: Family, row: Row, data: tuple[Batch, ...], direct: Direct | None, folder: Path) -> None:
    """Train in the subspace, pack, load, and fill the row in. Raises SubcompressError."""
    fit = subcompress.fit(family.make_net, family.load(), folder / "run", **arguments(family, row.seed))
    row.value, row.warnings, row.D = float(fit.validation), tuple(getattr(fit, "warnings", ())), fit.D
    row.bytes = subcompress.pack(folder / "run", folder / "net.safetensors")
    based = {} if family.base is None else {"base": family.base()}
    fresh = made(family, row.seed + 1)
    rebuilt = subcompress.load(folder / "net.safetensors", fresh, **based)
    wrong, once = [], family.value(rebuilt, data[1])
    if not math.isclose(once, row.value, rel_tol=1e-3, abs_tol=1e-5):
        wrong.append(f"the fit reports {row.value:.5g}, one call on the whole split gives {once:.5g}")
    if family.check is not None and direct is not None:
        start = start_of(family, row.d, row.seed)
        trained = Trained(folder / "net.safetensors", rebuilt, start, direct.model, direct.start, data)
        wrong += family.check(trained)
    row.wrong = tuple(wrong)


def measure(family: Family, seed: int) -> Row:
    """One row of the table."""
    row = Row(family.name, seed, family.metric_name, weights_of(family), family.d or weights_of(family))
    data, began, direct = tuple(stacked(s) for s in family.load()), time.perf_counter(), None
    if family.error:
        row.goal = f"an error that names {', '.join(family.error)}"
    else:
        direct = best_direct(family, data, seed)
        row.direct, row.step = direct.value, direct.step
        row.goal = f"{'<=' if family.minimize else '>='} {family.bound(direct.value):.4g}"
    between = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            fitted(family, row, data, direct, Path(folder))
        except SubcompressError as e:
            row.error = str(e)
        except Exception as e:  # a traceback, which no user should see
            row.error = f"a traceback: {type(e).__name__}: {' '.join(str(e).split())[:200]}"
    row.seconds = between - began, time.perf_counter() - between
    row.met = _met(family, row)
    return row


def _met(family: Family, row: Row) -> bool:
    if family.error:
        return all(word in row.error for word in family.error)
    if row.value is None or row.direct is None:
        return False
    return family.meets(row.value, family.bound(row.direct)) and not row.wrong


def notes(rows: list[Row]) -> Iterator[str]:
    """What the table has no room for."""
    for row in rows:
        yield from (f"- {row.family}: {line}" for line in (*row.wrong, *row.warnings))


def chosen(names: list[str], cases: Path | None) -> list[Family]:
    """The families with these names; all of them if no names are given."""
    found = dict(FAMILIES)
    for path in sorted(cases.glob("*.py")) if cases else []:
        family = runpy.run_path(str(path)).get("FAMILY")
        if isinstance(family, Family):
            found[family.name] = family
    if unknown := [name for name in names if name not in found]:
        raise SystemExit(f"family must be one of {', '.join(found)}; got {unknown[0]!r}")
    return [found[name] for name in names or found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cases", type=Path, help="a folder with more families")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON in place of the table")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    families = chosen(options.names, options.cases)
    if not options.json:
        print(HEADER, flush=True)
    for family in families:
        for seed in range(options.seeds):
            rows.append(measure(family, seed))
            print(json.dumps(asdict(rows[-1])) if options.json else rows[-1].markdown(), flush=True)
    met = f"{sum(row.met for row in rows)} of {len(rows)} goals met"
    text = [f"# Families, {options.seeds} seed(s), one thread, {time.strftime('%Y-%m-%d')}", "", HEADER]
    text += [row.markdown() for row in rows] + ["", met, "", *notes(rows)]
    if not options.json:
        print("\n".join(["", met, "", *notes(rows)]))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "families.md").write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
