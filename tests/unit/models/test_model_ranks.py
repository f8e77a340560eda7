"""A model split over ranks gives the logits of the whole one, and every rank the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl.distributed import Communicator
from support.full_attention import full_logits_of_each
from support.ranks import run_ranks
from support.tiny_models import make_tiny_model

# Two key-value heads: split over two ranks, each repeated on two of four. 509 tokens divide by neither.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"vocab_size": 509}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "vocab_size": 509}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "qwen2-repeated": ("qwen2", {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": [1], "norm_topk_prob": True, "max_shard_size": "100KB"}),
    "mistral": ("mistral", {"sliding_window": 10}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for name, (family, overrides) in CASES.items():
        make_tiny_model(family, directory / name, **overrides)
    return directory


@pytest.mark.parametrize(("size", "divided"), [(2, False), (4, False), (2, True), (4, True)])
def test_ranks_agree_with_one(size: int, divided: bool, models: Path) -> None:
    """With every row on all of them, or `divided`: 42 rows do not divide by four."""
    tokens = [0, 508, *(37 * i % 509 for i in range(40))]
    expected = full_logits_of_each(Communicator(), models, list(CASES), tokens)
    ranks = run_ranks(size, full_logits_of_each, models, list(CASES), tokens, divided)
    for case, logits in expected.items():
        for rank in ranks:
            assert rank[case] == ranks[0][case], case
            assert (torch.tensor(rank[case]) - torch.tensor(logits)).abs().max() < 1e-4, case
