"""A start on a GPU: weights arrive as the checkpoint has them, early or late, and what is done later is done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from minisgl.distributed import Communicator
from minisgl.engine.engine import Engine
from minisgl.engine.graphs import DecodeGraphs
from minisgl.engine.prefill_graphs import PrefillGraphs
from minisgl.llm import LLM, SamplingParams
from minisgl.models import reading
from minisgl.models.checkpoint import inspect
from minisgl.models.loader import read_weights
from minisgl.models.mapping import pieces
from minisgl.models.transformer import Transformer
from support.judge import Judge
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CUDA = torch.device("cuda", 0)

SERVE = """
import random, sys
from minisgl.llm import LLM, SamplingParams
draw = random.Random(3)
with LLM(sys.argv[1], device="cuda", dtype="bfloat16", num_pages=600, max_running_requests=20) as llm:
    for count in (1, 2, 7, 16, 33):
        prompts = [[draw.randrange(512) for _ in range(draw.randint(1, 70))] for _ in range(count)]
        for way in ({"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 9}, {"top_p": 0.5}, {"min_p": 0.2}):
            llm.generate(prompts, SamplingParams(max_tokens=9, ignore_eos=True, **way))
"""


@pytest.mark.parametrize("staging", [300, reading.STAGING_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_weights_on_the_gpu_are_those_of_the_checkpoint(
    staging: int, dtype: torch.dtype, rank: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model("qwen3_moe", tmp_path, mlp_only_layers=[1], max_shard_size="100KB")
    whole = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    monkeypatch.setattr(reading, "STAGING_BYTES", staging)
    with CUDA:
        model = Transformer(inspect(path), Communicator(rank, size), dtype)
    read_weights(model, path, CUDA).wait()
    for piece in pieces(model):
        expected = whole[piece.name][piece.source or ...].to(piece.target.dtype)
        assert torch.equal(piece.target.cpu(), expected), piece.name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny_model("qwen3", tmp_path_factory.mktemp("models") / "qwen3", num_hidden_layers=5, head_dim=64)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path


def greedy_tokens(path: Path, **more: Any) -> list[tuple[list[int], list[int]]]:
    """Prompts and their greedy tokens, in batches of several sizes, by an engine that is made for it."""
    some = [[(7 * i + 3 * j) % 500 for j in range(4 + 11 * i)] for i in range(20)]
    options: dict[str, Any] = {"num_pages": 600, "page_size": 16, "max_running_requests": 20}
    options |= {"attention": ("triton", "triton")}  # nothing of a library is compiled for it
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with LLM(str(path), device="cuda", dtype="bfloat16", **options | more) as llm:
        batches = [llm.generate(some[:count], params) for count in (1, 2, 3, 7, 11, 20)]
    return [(completion.prompt_token_ids, completion.token_ids) for batch in batches for completion in batch]


def test_weights_that_come_last_are_those_that_captured_steps_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy_tokens(model)
    captured = threading.Event()
    capture, read = Engine._capture, reading._read_exactly

    def then_tell(engine: Engine, most: int) -> None:
        capture(engine, most)
        captured.set()

    def late(*arguments: Any) -> None:
        assert captured.wait(60)
        read(*arguments)

    monkeypatch.setattr(Engine, "_capture", then_tell)
    monkeypatch.setattr(reading, "_read_exactly", late)
    assert greedy_tokens(model) == expected


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_weights_are_read_while_steps_are_captured(
    quantization: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy_tokens(model, quantization=quantization)
    capturing = threading.Event()
    capture, read = Engine._capture, reading._read_exactly
    meanwhile: list[bool] = []

    def captured_at_leisure(engine: Engine, most: int) -> None:
        capturing.set()
        capture(engine, most)
        time.sleep(0.5)
        capturing.clear()

    def slowly(*arguments: Any) -> None:
        time.sleep(0.04)
        read(*arguments)
        meanwhile.append(capturing.is_set())

    monkeypatch.setattr(Engine, "_capture", captured_at_leisure)
    monkeypatch.setattr(reading, "_read_exactly", slowly)
    monkeypatch.setattr(reading, "STAGING_BYTES", 1000)
    assert greedy_tokens(model, quantization=quantization) == expected
    assert sum(meanwhile) > 20


def test_sizes_that_are_needed_before_there_was_time_for_them_are_captured_then(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[type, list[int]] = {DecodeGraphs: [], PrefillGraphs: []}

    def noted(kind: type[DecodeGraphs | PrefillGraphs]) -> None:
        capture = kind._capture

        def note(graphs: Any, size: int) -> None:
            capture(graphs, size)
            sizes[kind].append(size)

        monkeypatch.setattr(kind, "_capture", note)

    noted(DecodeGraphs)
    noted(PrefillGraphs)
    monkeypatch.setattr(Engine, "idle", lambda _: False)
    Judge(model).check(greedy_tokens(model))
    assert sizes == {DecodeGraphs: [20, 1, 2, 4, 8, 16], PrefillGraphs: [2048, 64]}


def test_what_was_built_ahead_is_not_built_again(tmp_path: Path) -> None:
    path = make_tiny_model("qwen3", tmp_path / "model")
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    cache = tmp_path / "cache"
    environment = os.environ | {"MINISGL_KERNEL_CACHE": str(cache)}
    options = ["--dtype", "bfloat16", "--num-pages", "600", "--max-running-requests", "20"]
    build = [sys.executable, "-m", "minisgl.kernel", "build", "--model", str(path), *options]
    first = subprocess.run(build, check=True, env=environment, capture_output=True, text=True).stdout
    built = {file for file in cache.rglob("*") if file.is_file()}
    assert f"{cache}: {len(built)} new files" in first
    assert any(file.suffix == ".cubin" for file in built)
    again = subprocess.run(build, check=True, env=environment, capture_output=True, text=True).stdout
    assert re.search(r": 0 new files, \d+ in all", again)
    serve = [sys.executable, "-c", SERVE, str(path)]
    use = {"TRITON_CACHE_DIR": str(cache / "triton"), "FLASHINFER_WORKSPACE_BASE": str(cache)}
    subprocess.run(serve, check=True, env=environment | use)
    assert {file for file in cache.rglob("*") if file.is_file()} == built
