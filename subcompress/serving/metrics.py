"""Metrics for Prometheus, for the protocol's statistics, and for the status page."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from subcompress.serving.figures import STATES, Figures, added, figures_of, of_model
from subcompress.serving.models import Model, Models, now

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)

WINDOW = 10
"""Seconds that requests per second are a mean of."""


class Metrics:
    """Counts requests as they end; everything else is read from the models on demand.

    folder: where all workers write their counters, empty for a single process.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self.registry = CollectorRegistry()
        own: Any = {"namespace": "subcompress", "registry": self.registry}
        self._requests = Counter("requests", "Inference requests by model and status of HTTP", ["model", "code"], **own)
        self._seconds = Histogram(
            "request_seconds", "From the last byte of a request to its answer", buckets=SECONDS, **own
        )
        self._examples = Histogram("run_examples", "Examples that a run had", buckets=EXAMPLES, **own)
        self._memory = Gauge("memory_bytes", "Memory by what takes it", ["of"], **own)
        self._limit = Gauge("memory_limit_bytes", "What rebuilt models take together at most", **own)
        self._models = Gauge("models", "Models by state", ["state"], **own)
        self._waiting = Gauge("requests_waiting", "Requests that are in the server now", **own)
        self._by_label: dict[tuple[str, int], Any] = {}
        self.began = now()
        self.total = self.failed = self.refused = 0
        self.recent: deque[float] = deque(maxlen=2048)
        self._by_second: deque[tuple[int, int]] = deque(maxlen=WINDOW + 1)

    def ended(self, model: Model | None, code: int, seconds: float) -> None:
        """Count an answered request. model: None for an unknown name, so that names cannot fill memory."""
        label = ("" if model is None else model.name, code)
        if (counter := self._by_label.get(label)) is None:
            counter = self._by_label[label] = self._requests.labels(*map(str, label))
        counter.inc()
        self.total += 1
        self.refused += code == 503
        self.failed += code != 200 and code != 503
        second = int(now())
        if self._by_second and self._by_second[-1][0] == second:
            self._by_second[-1] = (second, self._by_second[-1][1] + 1)
        else:
            self._by_second.append((second, 1))
        if model is not None:
            model.requests += 1
            model.failed += code != 200
            model.last = now()
        if code == 200 and model is not None:
            self._seconds.observe(seconds)
            self.recent.append(seconds)
            model.recent.append(seconds)

    def ran(self, examples: int) -> None:
        """Count a run."""
        self._examples.observe(examples)

    def per_second(self) -> float:
        """Return the requests per second over the last full seconds."""
        second = int(now())
        span = min(WINDOW, max(1, int(now() - self.began)))
        return sum(n for at, n in self._by_second if second - span <= at < second) / span

    async def exposition(self, models: Models, waiting: int, others: Sequence[Figures] = ()) -> bytes:
        """Return the text that Prometheus reads. Another thread writes it, because it can have thousands of lines.

        others: the figures of other workers.
        """
        found = added(figures_of(models, self, waiting, with_models=False), others)
        for of, key in (("models", "used"), ("bases", "bases"), ("process", "process")):
            self._memory.labels(of).set(found[key])
        self._limit.set(found["limit"])
        self._waiting.set(found["waiting"])
        states = dict.fromkeys(STATES, 0)
        for model in models:
            states[of_model(model, others).state] += 1
        for state, n in states.items():
            self._models.labels(state).set(n)
        served = {"", *(model.name for model in models)}
        if self._folder:
            return await asyncio.to_thread(generate_latest, _AllWorkers(self.registry, self._folder, served))
        for name, code in [label for label in self._by_label if label[0] not in served]:
            del self._by_label[name, code]  # files may come and go for ever
            self._requests.remove(name, str(code))
        return await asyncio.to_thread(generate_latest, self.registry)


class _AllWorkers:
    """A registry that adds up the counters of all workers, also of dead ones, and has the gauges of this one.

    served: the names of the models whose counters are shown.
    """

    def __init__(self, own: CollectorRegistry, folder: str, served: Collection[str]) -> None:
        self._own, self._folder, self._served = own, folder, served

    def collect(self) -> Iterator[Any]:
        """Yield the metrics."""
        from prometheus_client.multiprocess import MultiProcessCollector

        yield from (metric for metric in self._own.collect() if metric.type == "gauge")
        for metric in MultiProcessCollector(None, self._folder).collect():
            if metric.type != "gauge":
                metric.samples = [s for s in metric.samples if s.labels.get("model", "") in self._served]
                yield metric


def percentile(seconds: Sequence[float], share: float) -> float | None:
    """Return a percentile in milliseconds, to the microsecond; None for no values."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def uptime(metrics: Metrics) -> float:
    """Seconds since the server began."""
    return round(now() - metrics.began, 1)
