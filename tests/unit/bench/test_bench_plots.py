"""Pictures are drawn from results, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.plots import draw, ratio_of
from bench.soak import Counts

POINT = {
    "offered": 10.0,
    "achieved": 9.8,
    "first_token_p50": 5.0,
    "first_token_p99": 9.0,
    "per_token_p50": 2.0,
    "per_token_p99": 3.0,
}
FIGURE = {
    "name": "a",
    "text": "a decode step of one request",
    "value": 2.0,
    "unit": "ms",
    "floor": 1.0,
    "ratio_to_floor": 2.0,
    "peers": {"vLLM": 3.0},
}
ONLINE = {
    "engines": [
        {"name": "radix", "rates": [POINT, POINT | {"offered": 20.0}]},
        {"name": "naive", "rates": [POINT]},
    ]
}
SOAK = {"memory_mib": {"seconds": [0, 60], "rss": [5, 6], "allocated": [1, 1]}, "counts": vars(Counts())}


@pytest.mark.parametrize(
    ("command", "results", "names"),
    [
        ("suite", {"figures": [FIGURE], "online": ONLINE}, ["r.svg", "r-online.svg"]),
        ("suite", {"figures": [FIGURE | {"floor": None, "ratio_to_floor": None}]}, []),
        ("online", ONLINE, ["r.svg"]),
        ("soak", SOAK, ["r.svg"]),
        ("host", {}, []),
    ],
)
def test_every_kind_of_result_is_drawn(tmp_path: Path, command: str, results: Any, names: list[str]) -> None:
    document = {
        "date": "2026-01-02T03:04:05",
        "machine": {"gpus": []},
        "settings": {"model": "tiny", "command": command},
        "results": results,
    }
    (tmp_path / "r.json").write_text(json.dumps(document))
    drawn = draw(tmp_path / "r.json")
    assert [path.name for path in drawn] == names
    first = [path.read_bytes() for path in drawn]
    assert all(text.count(b"<path") > 10 for text in first)
    assert [path.read_bytes() for path in draw(tmp_path / "r.json")] == first


def test_ratios_of_times_and_of_rates() -> None:
    assert ratio_of(FIGURE, "MiniSGLang") == 2 and ratio_of(FIGURE, "vLLM") == 3
    rate = FIGURE | {"unit": "tokens/s", "value": 100.0, "peers": {"vLLM": 50.0}}
    assert ratio_of(rate, "vLLM") == 4, "half the rate, twice as far from the floor"
    assert ratio_of(FIGURE, "SGLang") is None
