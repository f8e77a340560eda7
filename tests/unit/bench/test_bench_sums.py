"""What sums take of a step, from what one of them takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import sums
from bench.dummy import model_path
from bench.standard import GPU_CASES

from minisgl.models.config import ModelConfig


def test_a_layer_has_two_sums_and_a_long_prefill_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.load(Path(model_path("Qwen3-14B")))
    measured: list[int] = []

    def measure(_config: ModelConfig, tp: int, tokens: list[int], _runs: int) -> list[dict[str, Any]]:
        assert tp == 2
        measured.extend(tokens)
        return [{"tokens": count, "microseconds": {"peer memory": 3 + count / 1000}} for count in tokens]

    monkeypatch.setattr(sums, "measure", measure)
    cases = [
        case for case in GPU_CASES if case.name in ("step-1", "step-64", "prefill-64x2048", "offline-256-seed1")
    ]
    figures = sums.of_cases(config, 2, cases, budget=16384)
    assert measured == [1, 64, 16384]
    assert config.num_layers == 40
    assert {name: figure.value for name, figure in figures.items()} == {
        "step-1": pytest.approx(80 * 3.001e-3),
        "step-64": pytest.approx(80 * 3.064e-3),
        "prefill-64x2048": pytest.approx(8 * 80 * 19.384e-3),
    }
