"""A workload timed: the whole, and apart for each kind of request."""

from __future__ import annotations

import pytest
from bench.dummy import model_path
from bench.standard import case_of
from bench.throughput import run_case
from bench.workload import Workload

from minisgl.models.config import ModelConfig

MODEL = ModelConfig.load(model_path("Qwen3-0.6B"))


class Stating:
    """Says that each token of some kinds of requests took it so many seconds."""

    def __init__(self, *per_token: float) -> None:
        self._per_token = per_token

    def run(self, workload: Workload) -> list[float]:
        return [seconds * max(workload.output_lengths) for seconds in self._per_token]

    def close(self) -> None:
        pass


def test_a_step_of_several_kinds_has_a_figure_for_each() -> None:
    case = case_of("step", 4, (8, 8), (11, 11), 1, 0.0)
    engines = {"minisgl": Stating(0.001, 0.004)}
    (found,) = run_case(case, engines, MODEL, None, 2, {}, ["{}", '{"grammar": "start:/a/"}'])
    assert [kind["value"] for kind in found["kinds"]] == pytest.approx([1.0, 4.0])
    assert [kind["text"] for kind in found["kinds"]] == [
        "of those with {}",
        'of those with {"grammar": "start:/a/"}',
    ]


def test_a_single_request_is_of_one_kind() -> None:
    case = case_of("step", 1, (8, 8), (3, 3), 1, 0.0)
    (found,) = run_case(case, {"minisgl": Stating(0.001)}, MODEL, None, 1, {}, ["{}", '{"seed": 1}'])
    assert "kinds" not in found


@pytest.mark.parametrize("command", ["step", "offline"])
def test_one_kind_has_none_apart(command: str) -> None:
    case = case_of(command, 4, (8, 8), (3, 3), 1, 0.0)
    (found,) = run_case(case, {"minisgl": Stating(0.001)}, MODEL, None, 1, {}, ["{}"])
    assert "kinds" not in found
