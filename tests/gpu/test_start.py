"""A start on a GPU: weights arrive as the checkpoint has them, and what was built ahead is not built again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from minisgl.distributed import Communicator
from minisgl.models import reading
from minisgl.models.checkpoint import inspect
from minisgl.models.loader import read_weights
from minisgl.models.mapping import pieces
from minisgl.models.transformer import Transformer
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
    read_weights(model, path, CUDA)
    for piece in pieces(model):
        expected = whole[piece.name][piece.source or ...].to(piece.target.dtype)
        assert torch.equal(piece.target.cpu(), expected), piece.name


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
