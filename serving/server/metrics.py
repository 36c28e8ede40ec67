"""Prometheus metrics, under TF Serving's names where it has them (prometheus_exporter.cc)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import grpc
import prometheus_client
from prometheus_client import core

from serving.server.batch_scheduler import BATCH_ROWS
from serving.server.models import Models

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
DEFAULT_PATH = "/monitoring/prometheus/metrics"

_LATENCY_BUCKETS = tuple(250 * 2**i for i in range(16))
"""Microseconds: 250 µs to 8 s."""

_BATCH_BUCKETS = (*(str(float(rows)) for rows in BATCH_ROWS), "+Inf")

prometheus_client.disable_created_metrics()


class Metrics:
    """Thread-safe. Label values come from what is served, never from requests alone."""

    def __init__(self, models: Models):
        """
        Args:
          models: whose versions are counted whenever somebody asks.
        """
        self._registry = prometheus_client.CollectorRegistry()
        # A Gauge that only grows: a Counter's name would get a "_total" that TF Serving's hasn't.
        self._count = prometheus_client.Gauge(
            ":tensorflow:serving:request_count",
            "Requests answered.",
            ("model_name", "API", "entrypoint", "signature_name", "status"),
            registry=self._registry,
        )
        self._latency = prometheus_client.Histogram(
            ":tensorflow:serving:request_latency",
            "Microseconds from a request's parsing to its answer.",
            ("model_name", "API", "entrypoint", "signature_name"),
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self.dropped_log_lines = prometheus_client.Counter(
            "serving_request_log_dropped",
            "Lines of the request log lost because the disk was slow or full.",
            registry=self._registry,
        )
        prometheus_client.ProcessCollector(registry=self._registry)
        self._registry.register(_ModelsCollector(models))
        self._count_of = functools.cache(self._count.labels)
        self._latency_of = functools.cache(self._latency.labels)

    def observe(
        self,
        method: str,
        entrypoint: str,
        model: str,
        signature: str,
        code: grpc.StatusCode,
        seconds: float,
    ) -> None:
        """Counts one request; the latency only of one that was answered."""
        self._count_of(model, method, entrypoint, signature, code.name).inc()
        if code is grpc.StatusCode.OK:
            self._latency_of(model, method, entrypoint, signature).observe(seconds * 1e6)

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _ModelsCollector:
    """Versions come and go, so what is known of them is gathered when somebody asks."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterator[core.Metric]:
        labels = ("model_name", "version")
        available = core.GaugeMetricFamily(
            "serving_version_available", "1 for a version that answers.", labels=labels
        )
        hits = core.CounterMetricFamily(
            "serving_user_cache_hits", "Rows whose user was known.", labels=labels
        )
        misses = core.CounterMetricFamily(
            "serving_user_cache_misses", "Rows whose user had to be encoded.", labels=labels
        )
        queued = core.GaugeMetricFamily(
            "serving_queued_rows", "Rows that wait for a batch.", labels=labels
        )
        batches = core.HistogramMetricFamily(
            "serving_batch_rows", "Rows of the batches that ran.", labels=labels
        )
        tasks = core.GaugeMetricFamily(
            "serving_added_tasks", "Tasks answered beside the version's own.", labels=labels
        )
        refused = core.GaugeMetricFamily(
            "serving_added_tasks_refused",
            "Files of tasks that can't be answered: damaged, or trained on another version.",
            labels=labels,
        )
        for model in self._models:
            for version in model.versions():
                values = (model.name, str(version.number))
                with version.use() as servable:
                    if servable is None:
                        continue
                    available.add_metric(values, 1)
                    if servable.users:
                        hits.add_metric(values, servable.users.hits)
                        misses.add_metric(values, servable.users.misses)
                    if added := servable.added_tasks:
                        tasks.add_metric(values, len(added.tasks))
                        refused.add_metric(values, added.refused)
                    if scheduler := servable.scheduler:
                        queued.add_metric(values, scheduler.queued_rows)
                        buckets = zip(
                            _BATCH_BUCKETS, itertools.accumulate(scheduler.batches), strict=True
                        )
                        batches.add_metric(values, list(buckets), scheduler.batched_rows)
        yield from (available, hits, misses, tasks, refused, queued, batches)
