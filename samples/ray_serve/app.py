"""Deploys the server of `python -m runtime.serve` on Ray Serve: each replica is a process with the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve
from starlette.applications import Starlette

from runtime.serve import open_service
from runtime.server.app import make_app

DRAIN = 60  # seconds that a replica's requests in progress have at shutdown, as with --drain of runtime.serve


@serve.deployment(graceful_shutdown_timeout_s=DRAIN, health_check_period_s=5, max_constructor_retry_count=2)
@serve.ingress()
class Replica:
    """Runs one replica; shutdown finishes requests in progress. argv: a bundle and options of runtime.serve."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._service = open_service(argv)

    def __serve_build_asgi_app__(self) -> Starlette:
        return make_app(self._service)

    def check_health(self) -> None:
        """Raises if a device has failed; Serve then replaces the replica."""
        if self._service.workers.broken:
            raise RuntimeError("a device has failed; the log names the call")


def make_application(
    argv: Sequence[str], least: int, most: int, ongoing: int, cpus: float, gpus: float
) -> serve.Application:
    """Returns an application with `least` to `most` replicas, scaled to `ongoing` requests per replica.

    Waiting requests count too. A replica takes at most twice as many; further ones wait in Serve's proxy for the first
    free replica. cpus, gpus: per replica.
    """
    return Replica.options(
        autoscaling_config={
            "min_replicas": least, "initial_replicas": least, "max_replicas": most, "target_ongoing_requests": ongoing,
            "upscale_delay_s": 5, "look_back_period_s": 5, "metrics_interval_s": 1,
        },
        max_ongoing_requests=2 * ongoing, max_queued_requests=32 * most,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    ).bind(list(argv))  # fmt: skip
