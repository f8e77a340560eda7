"""One measured number beside its floor and what other engines took for the same, and tables of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minisgl.models.config import ModelConfig

PEERS = Path(__file__).parent / "peers.json"
"""Other engines on the same machine: what was measured, when, and of which versions."""
PEERS_OPTIONS = MappingProxyType({"tp_size": 1, "quantization": "none", "kv_cache_dtype": "auto"})
"""What they were measured with."""

RATES = frozenset({"tokens/s", "requests/s"})
"""Units of which more is better; of all others less is."""


@dataclass(frozen=True)
class Figure:
    name: str
    """What was done, such as ``offline-256-seed1``: the key to the peers' figures."""
    text: str
    """The same for people."""
    value: float
    unit: str
    floor: float | None = None
    """The best that the machine could do, in the same unit."""
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times the floor it takes; 1 cannot be beaten."""
        if self.floor is None:
            return None
        return self.floor / self.value if self.unit in RATES else self.value / self.floor

    @staticmethod
    def of_json(found: dict[str, Any]) -> Figure:
        """What `as_json` made."""
        return Figure(*(found[key] for key in ("name", "text", "value", "unit", "floor", "peers")))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "text": self.text,
            "value": round(self.value, 4),
            "unit": self.unit,
            "floor": None if self.floor is None else round(self.floor, 4),
            "ratio_to_floor": None if self.ratio is None else round(self.ratio, 3),
            "peers": self.peers,
        }


@cache
def _peers() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PEERS.read_text())
    return found


def peers_of(
    model: ModelConfig, name: str, gpu: str, options: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, float]:
    """Figure `name` of the other engines, where the model has the dimensions they were measured with and `gpu` is
    theirs; else empty. So it is when `options`, of `minisgl.llm.LLM`, ask for what they had not: several GPUs, or
    FP8.
    """
    known = _peers()
    if gpu != known["gpu"] or any(options.get(key, value) != value for key, value in PEERS_OPTIONS.items()):
        return {}
    for figure in known["figures"]:
        dimensions: dict[str, int] = known["models"][figure["model"]]
        if figure["name"] == name and all(getattr(model, key) == value for key, value in dimensions.items()):
            return {engine: figure[engine] for engine in known["engines"] if engine in figure}
    return {}


def peers_note() -> str:
    """Where the peers' figures are from, in a line each."""
    known = _peers()
    versions = "; ".join(f"{engine} {version}" for engine, version in known["engines"].items())
    return f"Peers on one {known['gpu']}, {known['date']}: {known['conditions']}.\n{versions}."


def print_figures(title: str, figures: Sequence[Figure]) -> None:
    """A line a figure: measured, floor, ratio, and the peers that any of them has."""
    engines = list(dict.fromkeys(engine for figure in figures for engine in figure.peers))
    width = max(len(figure.text) for figure in figures) + 2
    print(f"\n{title}")
    floors = any(figure.floor is not None for figure in figures)
    header = f"{'floor':>10}{'x floor':>9}" if floors else ""
    print(f"  {'':<{width}}{'measured':>19}{header}" + "".join(f"{e:>13}" for e in engines))
    for figure in figures:
        floor = "" if figure.floor is None else number(figure.floor)
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        others = "".join(f"{number(figure.peers[e]) if e in figure.peers else '':>13}" for e in engines)
        measured = f"{number(figure.value)} {figure.unit}"
        print(f"  {figure.text:<{width}}{measured:>19}{floor:>10}{ratio:>9}{others}".rstrip())
    if engines:
        print("".join(f"\n  {line}" for line in peers_note().splitlines()))


def number(value: float) -> str:
    """With three digits that say something, and thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
