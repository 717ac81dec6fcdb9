"""The data of the status page: the server's figures and its models, sorted and searched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from subcompress import __version__
from subcompress.serving.catalog import GRAPH
from subcompress.serving.engines import ports
from subcompress.serving.figures import Figures, ModelFigures, added, figures_of, of_model
from subcompress.serving.metrics import Metrics, percentile, uptime
from subcompress.serving.models import Model, Models, now

_Keyed = tuple[Model, ModelFigures]

SORTS: dict[str, Callable[[_Keyed], Any]] = {
    "requests": lambda m: (-m[1].requests, m[0].name),
    "name": lambda m: m[0].name,
    "p50": lambda m: (-(percentile(m[1].recent, 0.5) or 0), m[0].name),
    "bytes": lambda m: (-m[0].content.nbytes, m[0].name),
    "memory": lambda m: (-m[1].memory, m[0].name),
    "last": lambda m: (-(m[1].last or 0), m[0].name),
}
"""The orders of the page's models, and the key of each."""


def _row(model: Model, figures: ModelFigures) -> dict[str, Any]:
    content, engine = model.content, model.engine
    packed = content.packed
    return {
        "name": model.name,
        "file": content.found.place if content.found.path is None else content.found.path.name,
        "kind": "onnx" if content.found.path is not None and content.found.path.suffix == GRAPH else "packed",
        "file_bytes": content.nbytes,
        "dense_bytes": None if packed is None else packed.nbytes,
        "base": "" if packed is None or packed.base is None else packed.base.where,
        "state": figures.state,
        "reason": model.reason,
        "memory": figures.memory,
        "requests": figures.requests,
        "failed": figures.failed,
        "batches": figures.runs,
        "p50_ms": percentile(figures.recent, 0.5),
        "p99_ms": percentile(figures.recent, 0.99),
        "last_s": None if figures.last is None else round(now() - figures.last, 1),
        "inputs": [] if engine is None else ports(engine.inputs),
        "outputs": [] if engine is None else ports(engine.outputs),
    }


async def status(
    models: Models,
    metrics: Metrics,
    queue: tuple[int, int],
    shown: tuple[int, str, str],
    others: Sequence[Figures] = (),
) -> dict[str, Any]:
    """Return the figures, and some models.

    queue: the requests in the server, and its limit; shown: how many models at most, in what order (one of SORTS), and
    what their names contain or their state is; others: the figures of other workers.
    """
    limit, sort, search = shown
    keyed: list[_Keyed] = []
    states: list[str] = []
    for i, m in enumerate(list(models)):
        if i % 256 == 255:
            await asyncio.sleep(0)  # others' requests go on
        figures = of_model(m, others)
        states.append(figures.state)
        if search in m.name.lower() or search == figures.state:
            keyed.append((m, figures))
    first = sorted(keyed, key=SORTS[sort])[:limit]
    return _of_server(added(figures_of(models, metrics, queue[0], with_models=False), others), metrics) | {
        "queue": {"limit": queue[1] * (1 + len(others)), "waiting": queue[0] + sum(o["waiting"] for o in others)},
        "workers": 1 + len(others),
        "counts": {
            "models": len(states),
            "loaded": states.count("loaded"),
            "unavailable": states.count("unavailable"),
        },
        "models": [_row(*m) for m in first],
        "shown": len(first),
        "matching": len(keyed),
    }


def _of_server(found: Figures, metrics: Metrics) -> dict[str, Any]:
    """Return the part of the status about the server itself."""
    return {
        "name": "subcompress",
        "version": __version__,
        "uptime_s": uptime(metrics),
        "memory": {
            "limit": found["limit"],
            "models": found["used"],
            "bases": found["bases"],
            "process": found["process"],
        },
        "requests": {
            "total": found["total"],
            "failed": found["failed"],
            "refused": found["refused"],
            "per_s": round(found["per_s"], 1),
            "p50_ms": percentile(found["recent"], 0.5),
            "p99_ms": percentile(found["recent"], 0.99),
        },
    }
