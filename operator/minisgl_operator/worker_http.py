"""What a running worker says of itself, over HTTP: its pod's /metrics."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PORT = 8000
TIMEOUT_SECONDS = 2.0
MAX_BYTES = 1 << 20

_SAMPLE = re.compile(r"^(?P<name>[a-z_:]+)(\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_PHASE = re.compile(r'phase="([^"]*)"')


@dataclass(frozen=True)
class WorkerMetrics:
    running_requests: float = 0.0
    queued_requests: float = 0.0
    start_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase of the start, by name."""


def scrape(pod: Mapping[str, Any], port: int = PORT) -> WorkerMetrics | None:
    """The worker's metrics; None when it does not answer."""
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=TIMEOUT_SECONDS) as answer:
            return parse(answer.read(MAX_BYTES).decode(errors="replace"))
    except (OSError, ValueError, urllib.error.URLError):
        return None


def parse(text: str) -> WorkerMetrics:
    """From Prometheus' text format."""
    totals: dict[str, float] = {}
    phases: dict[str, float] = {}
    for sample in _SAMPLE.finditer(text):
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        totals[sample["name"]] = totals.get(sample["name"], 0.0) + value
        phase = _PHASE.search(sample["labels"] or "")
        if sample["name"] == "minisgl:start_seconds" and phase:
            phases[phase[1]] = value
    return WorkerMetrics(
        running_requests=totals.get("sglang:num_running_reqs", 0.0),
        queued_requests=totals.get("sglang:num_queue_reqs", 0.0),
        start_seconds=phases,
    )
