"""Results as JSON that says what was measured, on what, and from which commit."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
"""Variables that change the speed of operators on a CPU."""


@dataclass(frozen=True)
class Row:
    """One engine on one workload."""

    engine: str
    seconds: list[float]
    """Wall time of each run, after the warm-up."""
    requests: int
    input_tokens: int
    output_tokens: int

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def output_tokens_per_second(self) -> float:
        """Output tokens over the median wall time, the prompts' prefill included."""
        return self.output_tokens / self.median_seconds


def print_table(title: str, rows: list[Row]) -> None:
    """A line an engine; the ratio is to the slowest, in output tokens per second."""
    least = min(row.output_tokens_per_second for row in rows)
    print(f"\n{title}")
    print(f"  {'engine':<14}{'median s':>10}{'min s':>9}{'max s':>9}{'out tok/s':>11}{'ratio':>8}")
    for row in rows:
        print(
            f"  {row.engine:<14}{row.median_seconds:>10.2f}{min(row.seconds):>9.2f}{max(row.seconds):>9.2f}"
            f"{row.output_tokens_per_second:>11.1f}{row.output_tokens_per_second / least:>7.2f}x"
        )


def as_json(row: Row, step_ms: float | None = None) -> dict[str, Any]:
    return ({} if step_ms is None else {"decode_step_ms": round(step_ms, 4)}) | {
        "engine": row.engine,
        "median_seconds": round(row.median_seconds, 4),
        "seconds": [round(s, 4) for s in row.seconds],
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "output_tokens_per_second": round(row.output_tokens_per_second, 2),
    }


def write(path: Path, results: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write `results` with what is needed to measure them again."""
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | _versions("torch", "transformers", "minisgl", "triton", "flashinfer-python"),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "settings": settings,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {path}")


def _commit() -> str:
    if "MINISGL_BENCH_COMMIT" in os.environ:  # a copy of the tree without its history
        return os.environ["MINISGL_BENCH_COMMIT"]
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return ran.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
