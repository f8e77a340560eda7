"""How much memory this process has, and whether it stays the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

MIB = 2.0**20


def sample() -> dict[str, float]:
    """MiB: `rss` of this process, and on a GPU what torch's allocator has given out and holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {"rss": pages * os.sysconf("SC_PAGE_SIZE") / MIB}
    if torch.cuda.is_available():
        found["allocated"] = torch.cuda.memory_allocated() / MIB
        found["reserved"] = torch.cuda.memory_reserved() / MIB
    return found


@dataclass
class Series:
    """Samples over time."""

    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: float, values: dict[str, float]) -> None:
        self.seconds.append(seconds)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def as_json(self) -> dict[str, list[float]]:
        rounded = {name: [round(value, 2) for value in values] for name, values in self.values.items()}
        return {"seconds": [round(second, 2) for second in self.seconds]} | rounded


@dataclass(frozen=True)
class Trend:
    """Of one series, in its unit."""

    seconds: float
    """From its first to its last sample."""
    growth: float
    """What the least-squares line through it rises in this time."""
    spread: float
    """Largest less least."""


def trends(series: Series, *, after: float) -> dict[str, Trend]:
    """Of every series, the samples at `after` seconds and later; a series with fewer than two has none."""
    times = [second for second in series.seconds if second >= after]
    if len(times) < 2:
        return {}
    span = times[-1] - times[0]
    return {
        name: Trend(span, slope(times, kept) * span, max(kept) - min(kept))
        for name, values in series.values.items()
        for kept in [values[-len(times) :]]
    }


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the least-squares line; 0 when all `xs` are the same."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    variance = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / variance if variance else 0.0
