"""What Prometheus reads: requests, their time, the queue and the batches."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server."""

    def __init__(self, waiting: Callable[[], int], adapters: Callable[[], int]) -> None:
        """Begin at zero; `waiting` and `adapters` are asked when the figures are read."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lora_hf_requests",
            "Requests for a summary, by adapter (empty: the base, or none that is known) and HTTP status.",
            ("adapter", "status"),
            registry=self.registry,
        )
        self.seconds = self._histogram("request_seconds", "From a request to its answer.", SECONDS)
        self.batch_seconds = self._histogram("batch_seconds", "What a batch took.", SECONDS)
        self.batch_rows = self._histogram("batch_rows", "Dialogues of a batch.", SIZES)
        self.batch_adapters = self._histogram("batch_adapters", "Different adapters of a batch.", SIZES)
        self._gauge("queue", "Requests that wait for a batch.", waiting)
        self._gauge("adapters", "Adapters that are loaded.", adapters)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lora_hf_{name}", says, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, says: str, ask: Callable[[], int]) -> None:
        Gauge(f"lora_hf_{name}", says, registry=self.registry).set_function(lambda: float(ask()))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
