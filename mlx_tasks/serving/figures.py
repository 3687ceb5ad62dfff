"""What Prometheus reads of a server: latency by model and steps, queue, batches, images, versions, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlx_tasks.serving.follower import Follower
    from mlx_tasks.serving.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Figures:
    """The figures of one server, in a registry of their own."""

    def __init__(self, worker: Worker, follower: Follower) -> None:
        self._registry = CollectorRegistry()
        of_model = ("model", "version", "nfe")
        self.seconds = Histogram(
            "diffusion_request_seconds",
            "From a request's arrival to its images, queue included.",
            of_model,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.waited = Histogram(
            "diffusion_queue_seconds",
            "What a request waited before it was drawn.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.requests = Counter("diffusion_requests", "Requests by HTTP status.", ("status",), registry=self._registry)
        self.images = Counter("diffusion_images", "Images made.", ("model", "version"), registry=self._registry)
        self.unrecorded = Gauge(
            "diffusion_unrecorded_images", "Images that the monitor's window missed.", registry=self._registry
        )
        self.batch = Histogram("diffusion_batch_rows", "Rows of a network call.", buckets=ROWS, registry=self._registry)
        worker.on_call = self.batch.observe
        self._registry.register(_State(worker, follower))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is read off the threads when somebody asks."""

    def __init__(self, worker: Worker, follower: Follower) -> None:
        self._worker, self._follower = worker, follower

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        yield GaugeMetricFamily("diffusion_queue_images", "Images that wait.", self._worker.waiting_images)
        yield GaugeMetricFamily(
            "diffusion_queue_work",
            "Pixel evaluations that wait: images x evaluations x pixels.",
            self._worker.waiting_work,
        )
        yield GaugeMetricFamily("diffusion_images_per_second", "Pace while it draws.", self._worker.images_per_s)
        yield GaugeMetricFamily("diffusion_ready", "1 where a request would be drawn.", float(self._worker.ready))
        yield GaugeMetricFamily("diffusion_model_swaps", "Versions that came into service.", self._follower.swaps)
        yield GaugeMetricFamily(
            "diffusion_model_problem", "1 while what should serve cannot.", float(bool(self._follower.problem))
        )
        info = GaugeMetricFamily("diffusion_model_info", "What serves.", labels=("model", "version", "digest"))
        if (current := self._worker.current) is not None:
            info.add_metric((current.model.name, current.model.version, current.model.digest[:12]), 1.0)
        yield info
