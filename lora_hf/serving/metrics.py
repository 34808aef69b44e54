"""Prometheus metrics: requests, their duration, the queue and the batches."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server."""

    def __init__(self, waiting: Callable[[], int], adapters: Callable[[], int]) -> None:
        """Start all metrics at zero; `waiting` and `adapters` are called whenever the metrics are read."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lora_hf_requests",
            "Requests for a summary, by adapter (empty: the base, or an unknown one) and HTTP status.",
            ("adapter", "status"),
            registry=self.registry,
        )
        self.seconds = self._histogram("request_seconds", "Seconds from request to response.", SECONDS)
        self.batch_seconds = self._histogram("batch_seconds", "Seconds per batch.", SECONDS)
        self.batch_rows = self._histogram("batch_rows", "Dialogues per batch.", SIZES)
        self.batch_adapters = self._histogram("batch_adapters", "Different adapters per batch.", SIZES)
        self._gauge("queue", "Requests that wait for a batch.", waiting)
        self._gauge("adapters", "Adapters that are loaded.", adapters)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lora_hf_{name}", description, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, description: str, value: Callable[[], int]) -> None:
        gauge = Gauge(f"lora_hf_{name}", description, registry=self.registry)
        gauge.set_function(lambda: float(value()))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
