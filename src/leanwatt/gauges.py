"""What Prometheus reads of a server: requests, latency, queue, tokens, joules by provenance, and the promise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from leanwatt.batching import Answered, Batcher
from leanwatt.promise import Books

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
JOULES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class Gauges:
    """The figures of one server, in a registry of its own."""

    def __init__(self, batcher: Batcher, books: Books, engine: Callable[[], int] | None = None) -> None:
        """`engine` tells the number of the engine's process, where it has one of its own."""
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "leanwatt_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "leanwatt_request_seconds", "From request to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self._queued = Histogram(
            "leanwatt_queued_seconds", "Waiting for the engine", buckets=SECONDS, registry=registry
        )
        self._joules = Histogram(
            "leanwatt_request_joules",
            "Attributed energy of a request, by provenance; requests whose energy is unknown are not in it",
            ["route", "provenance"],
            buckets=JOULES,
            registry=registry,
        )
        self._unknown = Counter(
            "leanwatt_requests_of_unknown_energy", "Answered, energy unknown", ["route"], registry=registry
        )
        self._tokens = Counter("leanwatt_tokens", "Computed and written", ["direction"], registry=registry)
        queue = Gauge("leanwatt_queue", "Requests that wait for the engine", registry=registry)
        queue.set_function(lambda: batcher.waiting)
        registry.register(_Standing(batcher, books))
        ProcessCollector(registry=registry)
        if engine is not None:
            ProcessCollector("leanwatt_engine", engine, registry=registry)

    def seen(self, route: str, status: int, seconds: float) -> None:
        """A request ended, well or not."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, route: str, found: Answered) -> None:
        """The engine answered a request."""
        self._queued.observe(found.queued_seconds)
        self._tokens.labels("in").inc(sum(answer.tokens_in for answer in found.answers))
        self._tokens.labels("out").inc(sum(answer.tokens_out for answer in found.answers))
        if found.energy.joules is None:
            self._unknown.labels(route).inc()
        else:
            self._joules.labels(route, str(found.energy.provenance)).observe(found.energy.joules)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)


class _Standing(Collector):
    """Figures that are looked up when asked for; one that is unknown is absent."""

    def __init__(self, batcher: Batcher, books: Books) -> None:
        self._batcher, self._books = batcher, books

    def collect(self) -> Iterable[Metric]:
        now, batcher = self._books.standing(), self._batcher
        figures = {
            "leanwatt_promised_joules_per_ticket": ("What the report promised", now.promised_joules),
            "leanwatt_spent_joules_per_ticket": ("Mean of the recent tickets", now.spent_joules),
            "leanwatt_spent_to_promised": ("Only where the two can be compared", now.ratio),
            "leanwatt_accepted": ("Requests taken into the queue", float(batcher.accepted)),
            "leanwatt_batches": ("Times the engine was asked", float(batcher.batches)),
        }
        for name, (about, value) in figures.items():
            if value is not None:
                family = GaugeMetricFamily(name, about)
                family.add_metric([], value)
                yield family
