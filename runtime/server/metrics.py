"""Collects what /metrics reports: requests, queue, time to the first block, tokens per forward pass, threshold."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .events import End
from .worker_pool import Workers

# The bounds of the histograms' buckets.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIOS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Counters:
    """Counts one server's metrics. threshold: returns the threshold in force; None if the gate has none."""

    def __init__(self, workers: Workers, threshold: Callable[[], float] | None) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "blockstep_requests",
            "Requests by path and HTTP status; 499: the client left",
            ["path", "status"],
            registry=own,
        )
        self._first = Histogram(
            "blockstep_first_block_seconds",
            "From a request's arrival to its first finished block",
            buckets=SECONDS,
            registry=own,
        )
        self._whole = Histogram(
            "blockstep_answer_seconds", "From a request's arrival to its end", buckets=SECONDS, registry=own
        )
        self._ratio = Histogram(
            "blockstep_tokens_per_forward",
            "Tokens per forward pass, one value per answer",
            buckets=RATIOS,
            registry=own,
        )
        self._tokens = Counter("blockstep_tokens", "Tokens of finished answers", registry=own)
        self._forwards = Counter(
            "blockstep_forwards", "Forward passes of finished answers, without prefills", registry=own
        )
        gauges: list[tuple[str, str, Callable[[], float] | None]] = [
            ("blockstep_queue_waiting", "Requests that wait for a worker", lambda: workers.waiting),
            ("blockstep_queue_running", "Requests in progress", lambda: workers.running),
            ("blockstep_threshold", "Threshold of the gate now", threshold),
        ]
        for name, what, read in gauges:
            if read is not None:
                Gauge(name, what, registry=own).set_function(read)

    def count_request(self, path: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()

    def record_first_block(self, seconds: float) -> None:
        """Records the time from a request's arrival to its first finished block."""
        self._first.observe(seconds)

    def answer(self, end: End, seconds: float) -> None:
        """Records a finished answer. seconds: from its request's arrival."""
        self._whole.observe(seconds)
        self._tokens.inc(end.counts.tokens)
        self._forwards.inc(end.counts.forwards)
        self._ratio.observe(end.counts.tokens / max(1, end.counts.forwards))

    def format_page(self) -> tuple[bytes, str]:
        """Returns the metrics as text, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
