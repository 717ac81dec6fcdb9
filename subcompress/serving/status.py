"""The data of the status page: the server's figures and its models, sorted and searched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from subcompress import __version__
from subcompress.serving.catalog import GRAPH
from subcompress.serving.engines import ports
from subcompress.serving.metrics import Metrics, percentile, uptime
from subcompress.serving.models import Model, Models, now, resident_bytes

SORTS: dict[str, Callable[[Model], Any]] = {
    "requests": lambda m: (-m.requests, m.name),
    "name": lambda m: m.name,
    "p50": lambda m: (-(percentile(m.recent, 0.5) or 0), m.name),
    "bytes": lambda m: (-m.content.nbytes, m.name),
    "memory": lambda m: (-m.memory, m.name),
    "last": lambda m: (-(m.last or 0), m.name),
}
"""What the page may order models by."""


def _row(model: Model) -> dict[str, Any]:
    content, engine = model.content, model.engine
    packed = content.packed
    return {
        "name": model.name,
        "file": content.found.place if content.found.path is None else content.found.path.name,
        "kind": "onnx" if content.found.path is not None and content.found.path.suffix == GRAPH else "packed",
        "file_bytes": content.nbytes,
        "dense_bytes": None if packed is None else packed.nbytes,
        "base": "" if packed is None or packed.base is None else packed.base.where,
        "state": model.state,
        "reason": model.reason,
        "memory": model.memory,
        "requests": model.requests,
        "failed": model.failed,
        "batches": model.runs,
        "p50_ms": percentile(model.recent, 0.5),
        "p99_ms": percentile(model.recent, 0.99),
        "last_s": None if model.last is None else round(now() - model.last, 1),
        "inputs": [] if engine is None else ports(engine.inputs),
        "outputs": [] if engine is None else ports(engine.outputs),
    }


async def status(models: Models, metrics: Metrics, limit: int, sort: str, search: str) -> dict[str, Any]:
    """Return the figures, and at most `limit` models with `search` in their names or as their state. sort: one of
    SORTS."""
    keyed: list[tuple[Any, Model]] = []
    for i, m in enumerate(list(models)):
        if i % 256 == 255:
            await asyncio.sleep(0)  # others' requests go on
        if search in m.name.lower() or search == m.state:
            keyed.append((SORTS[sort](m), m))
    shown = [m for _, m in sorted(keyed, key=itemgetter(0))][:limit]
    states = [m.state for m in models]
    return {
        "name": "subcompress",
        "version": __version__,
        "uptime_s": uptime(metrics),
        "memory": {
            "limit": models.limit,
            "models": models.used,
            "bases": models.networks.bases.nbytes,
            "process": resident_bytes(),
        },
        "requests": {
            "total": metrics.total,
            "failed": metrics.failed,
            "refused": metrics.refused,
            "per_s": round(metrics.per_second(), 1),
            "p50_ms": percentile(metrics.recent, 0.5),
            "p99_ms": percentile(metrics.recent, 0.99),
        },
        "counts": {
            "models": len(states),
            "expanded": states.count("expanded"),
            "unavailable": states.count("unavailable"),
        },
        "models": [_row(m) for m in shown],
        "shown": len(shown),
        "matching": len(keyed),
    }
