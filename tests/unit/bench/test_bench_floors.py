"""The floor of the standard benchmark, and the tables around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.dummy import model_directory
from bench.figures import PEERS, Figure, number, peers_of, print_figures
from bench.floors import Ceilings, Dimensions, Floor
from bench.standard import CPU_CASES, GPU_CASES, case_of
from bench.workload import uniform

from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    root = tmp_path_factory.mktemp("dimensions")
    return {name: ModelConfig.load(model_directory(name, root)) for name in ("Qwen3-0.6B", "Qwen3-14B")}


def floor_of(model: ModelConfig, **options: object) -> Floor:
    return Floor.of(model, "bfloat16", options, Ceilings())


@pytest.mark.parametrize(
    ("name", "seed", "tokens", "prefill", "weights", "kv", "total"),
    [
        ("Qwen3-0.6B", 1, (149_935, 156_222), 0.17, 0.31, 4.03, 4.51),
        ("Qwen3-0.6B", 2, (147_434, 140_460), 0.16, 0.31, 3.47, 3.94),
        ("Qwen3-14B", 1, (149_935, 156_222), 4.95, 7.32, 5.76, 18.03),
        ("Qwen3-14B", 2, (147_434, 140_460), 4.87, 7.23, 4.95, 17.06),
    ],
)
def test_the_offline_benchmarks_floor(
    models: dict[str, ModelConfig],
    name: str,
    seed: int,
    tokens: tuple[int, int],
    prefill: float,
    weights: float,
    kv: float,
    total: float,
) -> None:
    """The published figures of this formula for an H200, to their last digit."""
    workload = uniform(seed, 256, (100, 1024), (100, 1024), 151_936)
    assert (workload.input_tokens, workload.output_tokens) == tokens
    seconds = floor_of(models[name]).generate([len(p) for p in workload.prompts], workload.output_lengths)
    assert [round(s, 2) for s in (seconds.prefill, seconds.weights, seconds.kv)] == [prefill, weights, kv]
    assert round(seconds.total, 2) == total


def test_steps_of_one_and_of_many(models: dict[str, ModelConfig]) -> None:
    small, large = floor_of(models["Qwen3-0.6B"]), floor_of(models["Qwen3-14B"])
    assert small.weights(1) * 1e3 == pytest.approx(0.28, abs=0.005)
    assert (large.weights(1) + large.kv(400)) * 1e3 == pytest.approx(6.6, abs=0.05)
    assert (small.weights(64) + small.kv(64 * 1150)) * 1e3 == pytest.approx(2.3, abs=0.05)
    assert (large.weights(64) + large.kv(64 * 1150)) * 1e3 == pytest.approx(9.4, abs=0.05)
    assert large.weights(4096) > 2 * large.weights(1), (
        "many rows take as long as their products, not as the reading"
    )


def test_a_generation_is_the_sum_of_its_steps(models: dict[str, ModelConfig]) -> None:
    floor = floor_of(models["Qwen3-0.6B"])
    seconds = floor.generate([10, 20], [3, 1])
    assert seconds.prefill == floor.prefill(30)
    assert seconds.weights == pytest.approx(2 * floor.weights(1)), "the second request is done after the prefill"
    assert seconds.kv == pytest.approx(floor.kv(11 + 12))


def test_quantization_and_ranks_lower_the_floor(models: dict[str, ModelConfig]) -> None:
    model = models["Qwen3-14B"]
    plain, fp8 = floor_of(model), floor_of(model, quantization="fp8")
    head = 151_936 * 5120 * 2 / 4.25e12
    assert fp8.weights(1) - head == pytest.approx((plain.weights(1) - head) / 2)
    assert fp8.prefill(1000) == plain.prefill(1000) / 2
    assert floor_of(model, kv_cache_dtype="fp8").kv(1000) == plain.kv(1000) / 2
    assert floor_of(model, tp_size=4).weights(1) == plain.weights(1) / 4
    assert Floor.of(model, "float32", {}, Ceilings()).kv(1000) == plain.kv(1000) * 2


def test_experts_that_nobody_chooses_are_not_read() -> None:
    sparse = Dimensions(
        dense_parameters=100,
        expert_parameters=10,
        num_experts=8,
        experts_per_token=2,
        head_parameters=0,
        kv_values=1,
    )
    assert sparse.active_parameters == 120
    assert sparse.read_parameters(1) == pytest.approx(120)
    assert sparse.read_parameters(2) == pytest.approx(100 + 8 * 10 * (1 - 0.75**2))
    assert sparse.read_parameters(1000) == pytest.approx(180)


def test_peers_only_stand_beside_their_own_model_and_gpu(models: dict[str, ModelConfig]) -> None:
    small = models["Qwen3-0.6B"]
    assert peers_of(small, "offline-256-seed1", "NVIDIA H200") == {
        "mini-sglang": 7.22,
        "SGLang": 7.41,
        "vLLM": 6.46,
    }
    assert peers_of(models["Qwen3-14B"], "step-64", "NVIDIA H200")["vLLM"] == 11.91
    assert not peers_of(small, "offline-256-seed1", "NVIDIA H100")
    assert peers_of(small, "offline-256-seed1", "NVIDIA H200", {"tp_size": 1, "page_size": 64})
    for options in ({"tp_size": 2}, {"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}):
        assert not peers_of(small, "offline-256-seed1", "NVIDIA H200", options), "the peers had not"
    assert not peers_of(small, "offline-16-seed1", "NVIDIA H200")


def test_every_peers_figure_is_of_a_case_that_is_run() -> None:
    known = {case.name for case in GPU_CASES} | {"start"}
    assert {figure["name"] for figure in json.loads(PEERS.read_text())["figures"]} <= known


def test_a_standard_case_is_known_by_its_arguments() -> None:
    for case in GPU_CASES + CPU_CASES:
        assert case_of(case.command, case.requests, case.inputs, case.outputs, case.seed, 0.0).name == case.name
    assert case_of("step", 64, (1024, 1024), (257, 257), 7, 0.0).name == "step-64", "lengths are not drawn"
    assert case_of("offline", 256, (100, 1024), (100, 1024), 3, 0.6).name == "offline-256-seed3"


def test_the_table_shows_ratios_and_peers(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        Figure("a", "a time", 6.35, "s", 4.51, {"vLLM": 6.46}),
        Figure("b", "a rate", 403_500.0, "tokens/s", 908_000.0),
        Figure("c", "no floor", 3.2, "s"),
    ]
    assert figures[1].ratio == pytest.approx(2.25, abs=0.005)
    assert Figure.of_json(figures[0].as_json()).as_json() == figures[0].as_json()
    print_figures("Title", figures)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["a", "time", "6.35", "s", "4.51", "1.41", "6.46"]
    assert lines[4].split() == ["a", "rate", "403,500", "tokens/s", "908,000", "2.25"]
    assert lines[5].split() == ["no", "floor", "3.20", "s"]
    assert [number(value) for value in (0.2812, 12.345, 123.45)] == ["0.281", "12.35", "123.5"]


def test_unknown_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Qwen3-1B.*Qwen3-0.6B"):
        model_directory("Qwen3-1B", tmp_path)
