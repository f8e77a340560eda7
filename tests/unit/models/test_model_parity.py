"""Logits of every family against `transformers`, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minisgl.distributed import Communicator
from support.full_attention import full_logits
from support.tiny_models import make_tiny_model

TOLERANCE = 1e-4
LENGTH = 150
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
WINDOWED = {"use_sliding_window": True, "sliding_window": 20}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama without grouped heads": ("llama", {"num_key_value_heads": 8}),
    "llama in shards": ("llama", {"max_shard_size": "100KB"}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama with yarn rope": ("llama", {"rope_parameters": YARN}),
    "llama with linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama with a large theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied, yarn given in full": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "rope_parameters": YARN
            | {"attention_factor": 1.3, "beta_fast": 4, "beta_slow": 0.5, "truncate": False},
        },
    ),
    "qwen2 with windows in its last layer": ("qwen2", WINDOWED | {"max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 with windows in its first layer": (
        "qwen3",
        WINDOWED | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe normalized, in shards": ("qwen3_moe", {"norm_topk_prob": True, "max_shard_size": "100KB"}),
    "qwen3_moe with dense layers": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": True}),
    "qwen3_moe with every other layer sparse": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe with windows": ("qwen3_moe", WINDOWED),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with windows": ("mistral", {"sliding_window": 20}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_transformers(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    path = make_tiny_model(family, tmp_path, **overrides)
    tokens = torch.randint(0, 512, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens[None]).logits[0]
    assert expected.std() > 0.5
    assert (full_logits(Communicator(), path, tokens.tolist()) - expected).abs().max() < TOLERANCE
    assert len(list(path.glob("*.safetensors"))) > 1 or "max_shard_size" not in overrides


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_bfloat16_stays_near_float32(family: str, tmp_path: Path) -> None:
    path = make_tiny_model(family, tmp_path)
    tokens = [7 * i for i in range(40)]
    expected = full_logits(Communicator(), path, tokens)
    logits = full_logits(Communicator(), path, tokens, torch.bfloat16)
    assert 0 < (logits - expected).abs().mean() < 0.1 * expected.std()
