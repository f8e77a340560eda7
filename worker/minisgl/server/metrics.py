"""What Prometheus reads. SGLang's names where it has one, so that its dashboards and routers work."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from minisgl.message import SchedulerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL = "model_name"

_FIRST_TOKEN_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 80, 160)
_TOKEN_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_BUCKETS = (0.1, 0.2, 0.4, 0.8, 1, 2, 5, 10, 20, 40, 60, 100, 200, 400, 800, 1600)


class Metrics:
    """The worker's numbers: what the API server measures itself, and the scheduler's last report."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._model_name = model_name
        self._registry = CollectorRegistry()
        self._report = SchedulerReport(model_name)
        self._registry.register(self._report)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, [LABEL], registry=self._registry, buckets=buckets).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, [LABEL], registry=self._registry).labels(model_name)

        self.first_token = histogram(
            "sglang:time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self.inter_token = histogram(
            "sglang:inter_token_latency_seconds", "Between two tokens of a request.", _TOKEN_BUCKETS
        )
        self.end_to_end = histogram(
            "sglang:e2e_request_latency_seconds", "From a request's arrival to its last token.", _REQUEST_BUCKETS
        )
        self.prompt_tokens = counter("sglang:prompt_tokens_total", "Prompt tokens of requests that got a token.")
        self.generation_tokens = counter("sglang:generation_tokens_total", "Tokens generated.")
        self.requests = counter("sglang:num_requests_total", "Prompts that were answered to their end.")
        self.aborted = counter("minisgl:aborted_requests_total", "Prompts given up before their end.")

    @property
    def stats(self) -> SchedulerStats:
        """The scheduler's last report."""
        return self._report.stats

    @property
    def generated(self) -> int:
        """Tokens generated since the start."""
        name = "sglang:generation_tokens_total"
        return int(self._registry.get_sample_value(name, {LABEL: self._model_name}) or 0)

    def report(self, stats: SchedulerStats) -> None:
        self._report.stats = stats

    def started(self, phases: dict[str, float]) -> None:
        """Seconds of each phase of the start."""
        self._report.phases = phases

    def page(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)


class SchedulerReport:
    """A Prometheus collector of the scheduler's last report: its gauges, and its counters since the start."""

    def __init__(self, model_name: str) -> None:
        self._labels = [model_name]
        self.stats = SchedulerStats()
        self.phases: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        usage = stats.used_pages / max(stats.total_pages, 1)
        hit_rate = stats.cached_tokens / max(stats.prompt_tokens, 1)
        gauges: list[tuple[str, str, float]] = [
            ("sglang:num_running_reqs", "Requests that hold pages.", stats.running),
            ("sglang:num_queue_reqs", "Requests that wait to be admitted.", stats.queued),
            ("sglang:token_usage", "Share of the KV pool in use.", usage),
            (
                "sglang:cache_hit_rate",
                "Share of prompt tokens that the prefix cache spared, since the start.",
                hit_rate,
            ),
            ("minisgl:total_pages", "Pages of the KV pool.", stats.total_pages),
            ("minisgl:used_pages", "Pages that running requests read or write.", stats.used_pages),
            ("minisgl:cached_pages", "Pages of the prefix cache that can be evicted.", stats.cached_pages),
        ]
        counters = [
            ("minisgl:cached_prompt_tokens", "Prompt tokens that the prefix cache spared.", stats.cached_tokens),
            ("minisgl:retractions", "Requests put back into the queue for want of pages.", stats.retractions),
            ("minisgl:evicted_pages", "Pages that the prefix cache gave up.", stats.evicted_pages),
            ("minisgl:steps", "Steps of the engine.", stats.steps),
        ]
        for kind, rows in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, text, value in rows:
                family = kind(name, text, labels=[LABEL])
                family.add_metric(self._labels, value)
                yield family
        start = GaugeMetricFamily(
            "minisgl:start_seconds", "Seconds of each phase of the start.", labels=[LABEL, "phase"]
        )
        for phase, seconds in self.phases.items():
            start.add_metric([*self._labels, phase], seconds)
        yield start
