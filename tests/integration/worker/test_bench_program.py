"""The benchmark program against real processes and a real engine, on a model of no size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.dummy_model import make_dummy_model

ROOT = Path(__file__).parents[3]
SERVER = "--device cpu --num-pages 400 --max-running-requests 16"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return make_dummy_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)


def bench(*arguments: str, out: Path, status: int = 0) -> tuple[str, Any]:
    """Run it; what it printed, and the JSON that it wrote."""
    command = [sys.executable, "-m", "bench", *arguments, "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout, json.loads(out.read_text()) if out.exists() else None


def test_online_against_a_real_server(tiny: Path, tmp_path: Path) -> None:
    size = ("--prefix", "96", "--question", "24", "--answer", "12", "--burst", "8")
    load = ("--rates", "3,8", "--seconds", "2")
    printed, document = bench(
        *("online", "--model", str(tiny), "--server-options", SERVER, *size, *load), out=tmp_path / "online.json"
    )
    radix, naive = document["results"]["engines"]
    assert (radix["name"], naive["name"]) == ("radix", "naive")
    for engine in (radix, naive):
        assert engine["capacity"]["prefill"] > 0 and engine["capacity"]["decode"] > 0
        for point in engine["rates"]:
            assert point["failed"] == 0 and point["requests"] > 0
            assert 0 < point["first_token_p50"] <= point["first_token_p99"]
            assert 0 < point["per_token_p50"] <= point["per_token_p99"]
            assert point["output_tokens_per_second"] > 0
            assert point["server_cpu"]["scheduler.process"] > 0 and point["client_cpu"] < 0.5
    # Pages of 16 hold 96 tokens whole; the first request of all has to read them.
    assert radix["rates"][1]["cached_share"] == pytest.approx(96 / 120, abs=0.02)
    assert naive["rates"][1]["cached_share"] == 0
    prediction = document["results"]["prediction"]
    rows = {(row["engine"], row["what"].split(" when")[0].split(",")[0]): row for row in prediction}
    assert rows["radix", "prompt tokens computed"]["measured"] == pytest.approx(24, abs=3)
    assert rows["radix", "requests/s"]["predicted"] > rows["naive", "requests/s"]["predicted"]
    assert "first token ms" in printed and "prompt tokens computed" in printed


def test_a_short_soak(tiny: Path, tmp_path: Path) -> None:
    options = '{"num_pages": 100, "max_running_requests": 8, "prefill_budget": 64, "device": "cpu"}'
    printed, document = bench(
        *("soak", "--model", str(tiny), "--minutes", "0.07", "--wave", "1", "--options", options),
        out=tmp_path / "soak.json",
    )
    assert "nothing failed" in printed
    results = document["results"]
    assert results["failures"] == [] and results["counts"]["requests"] > 10 and results["counts"]["drains"] >= 2
    assert len(results["memory_mib"]["rss"]) == results["counts"]["drains"]


def test_a_soak_whose_memory_is_not_flat_fails(tiny: Path, tmp_path: Path) -> None:
    printed, _ = bench(
        *("soak", "--model", str(tiny), "--minutes", "0.1", "--wave", "0.3", "--bounds", '{"rss": 0.0001}'),
        *("--options", '{"num_pages": 100, "max_running_requests": 8, "device": "cpu"}'),
        out=tmp_path / "soak.json",
        status=1,
    )
    assert "memory is not flat: rss" in printed


def test_start_and_host(tiny: Path, tmp_path: Path) -> None:
    printed, document = bench(
        *("start", "--model", str(tiny), "--runs", "1", "--server-options", SERVER), out=tmp_path / "start.json"
    )
    (run,) = document["results"]
    assert 0 < run["ready"] < run["first_token"] < 120
    # The system knows when a process was started to a hundredth of a second.
    assert 0 < sum(run["phases"].values()) < run["ready"] + 0.02 and run["phases"]["imports"] > 0
    assert "process start to ready" in printed
    options = '{"num_pages": 300, "device": "cpu"}'
    _, document = bench(
        *("host", "--model", str(tiny), "--batch", "8", "--context", "8", "--steps", "10", "--options", options),
        out=tmp_path / "host.json",
    )
    real, alone = document["results"]["with the engine"], document["results"]["without a device"]
    assert real["wait"] > real["launch"] > 0 and alone["wait"] < real["wait"]


def test_throughput_beside_a_floor(tiny: Path, tmp_path: Path) -> None:
    printed, document = bench(
        *("step", "--model", str(tiny), "--requests", "2", "--inputs", "8", "--outputs", "9", "--runs", "1"),
        *("--bandwidth", "1e10", "--flops", "1e11", "--sampling", "{}", "--sampling", '{"presence_penalty": 0.5}'),
        *("--options", '{"dummy_weight": true, "num_pages": 100, "device": "cpu"}'),
        out=tmp_path / "step.json",
    )
    (result,) = document["results"]
    assert result["figure"]["unit"] == "ms" and result["figure"]["ratio_to_floor"] > 1
    assert "x floor" in printed
    assert result["figure"]["text"].endswith('sampling {} or {"presence_penalty": 0.5}')


def test_bad_arguments_are_told_in_a_line(tiny: Path) -> None:
    def fails(*arguments: str) -> str:
        command = [sys.executable, "-m", "bench", *arguments]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 2 and "Traceback" not in ran.stderr, ran.stderr
        return ran.stdout + ran.stderr

    assert "COMMAND" in fails("sing")
    assert "Qwen3-0.6B" in fails("online", "--model", "nowhere")
    assert "above 0" in fails("online", "--model", str(tiny), "--rates", "3,-1")
    assert "no field of SamplingParams: penalty" in fails(
        "step", "--model", str(tiny), "--sampling", '{"penalty": 1}'
    )
    assert "Expected `int" in fails("step", "--model", str(tiny), "--sampling", '{"logprobs": "many"}')
    assert "--options pages" in fails("soak", "--model", str(tiny), "--options", '{"pages": 1}')
    assert "no OpenAI endpoint" in fails("online", "--model", str(tiny), "--url", "http://127.0.0.1:9/v1")
