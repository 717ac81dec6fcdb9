"""Is the network of a run still the same? Its outputs for a few examples, from a fixed start, are kept beside the run.

Its code may change without its name, its tensors or its source: in a function that it calls, in a package. Another
processor adds in another order, so that outputs are compared within a tolerance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subcompress.data.in_memory import tensors_in
from subcompress.data.splits import Data, batches, call, size, without_graph
from subcompress.errors import SubcompressError
from subcompress.subspace.copying import copied
from subcompress.subspace.module import Subspace
from subcompress.subspace.plan import Plan
from subcompress.subspace.seeds import seed_everything
from subcompress.support.files import write_bytes

FILE = "outputs.json"
"""The name of the file in a run folder."""

EXAMPLES, VALUES = 8, 64
"""Examples of the validation split, and values of each output that are kept, evenly spaced."""

TOLERANCE = 1e-3
"""The tolerance, as a share of a value and of the root mean square of its output."""

Outputs = list[dict[str, Any]]
"""For each output: its shape, its root mean square and some of its values."""


def outputs_of(model: nn.Module, plan: Plan, data: Data, held: Collection[str] = ()) -> Outputs | None:
    """The outputs of the network in evaluation mode with all coordinates of the plan at one, so that no layer is zero.
    None if it raises, which another check reports, or if its outputs differ each time. held: parameters that need no
    copy."""
    try:
        subspace = Subspace(copied(model, "cpu", shared=held), plan, own=True, still=held).eval()
        with torch.no_grad():
            subspace.z.fill_(1.0)
        first, again = (_once(subspace, data) for _ in range(2))
    except Exception:
        return None
    return first if first and alike(first, again) else None


def _once(subspace: Subspace, data: Data) -> Outputs:
    x, _ = next(batches(data.validation, EXAMPLES, order=torch.arange(min(EXAMPLES, size(data.validation))), seed=0))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), subspace.materialized() as module:

        def seeded() -> Any:
            seed_everything(0, 0)
            return call(module, x)

        found = without_graph(seeded)
    return [_kept(t) for t in tensors_in(found) if t.is_floating_point() or t.is_complex()]


def _kept(t: Tensor) -> dict[str, Any]:
    flat = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).detach().reshape(-1).double().cpu()
    some = flat[torch.linspace(0, max(0, len(flat) - 1), min(VALUES, len(flat))).long()]
    return {"shape": list(t.shape), "size": float(flat.square().mean().sqrt()), "values": some.tolist()}


def alike(a: Outputs, b: Outputs) -> bool:
    """Whether outputs are the same except for the order of additions."""
    shapes = ([(o["shape"], len(o["values"])) for o in outputs] for outputs in (a, b))
    if next(shapes) != next(shapes):
        return False
    numbers = ([[*o["values"], o["size"]] for o in outputs] for outputs in (a, b))
    pairs = zip(*numbers, strict=True)
    return all(_near(v, w, first[-1]) for first, second in pairs for v, w in zip(first, second, strict=True))


def _near(a: float, b: float, size: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return abs(a - b) <= TOLERANCE * (max(abs(a), abs(b)) + (size if math.isfinite(size) else 0.0))


def same_network(folder: Path, outputs: Outputs | None) -> bool:
    """Whether a run folder is of a network with these outputs, as far as that is known."""
    held = _held(folder)
    return held is None or outputs is None or alike(held, outputs)


def go_on(folder: Path, outputs: Outputs | None) -> None:
    """Keep the outputs of a run that goes on. Raises SubcompressError if its folder is of a network with others."""
    if not same_network(folder, outputs):
        raise SubcompressError(
            f"{folder} holds an unfinished run of another network (this one gives other outputs for {EXAMPLES} "
            "examples, so that its code or the data have changed): give another folder, or --restart to "
            "discard it"
        )
    if _held(folder) is None:  # else those of the machine that began it
        keep(folder, outputs)


def keep(folder: Path, outputs: Outputs | None) -> None:
    """Write them to the run folder."""
    write_bytes(folder / FILE, (json.dumps(outputs) + "\n").encode())


def _held(folder: Path) -> Outputs | None:
    """The outputs that a folder keeps; None if there are none or if they were changed."""
    try:
        found = json.loads((folder / FILE).read_text("utf-8"))
        return [
            {"shape": list(o["shape"]), "size": float(o["size"]), "values": [float(v) for v in o["values"]]}
            for o in found
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
