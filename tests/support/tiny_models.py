"""Tiny random models of every family, made and saved by `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
    "mistral": MistralConfig,
}

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}

EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def make_tiny_model(family: str, directory: Path, **overrides: Any) -> Path:
    """Save a random float32 model of `family` in `directory`, and return `directory`.

    The same arguments give the same weights. They are large enough, biases and norms included, for every layer to
    change the logits. `overrides` are fields of the family's configuration; `seed` (default 0) and
    `max_shard_size` (as `save_pretrained` takes it) are not.
    """
    seed = overrides.pop("seed", 0)
    save = {"max_shard_size": overrides.pop("max_shard_size")} if "max_shard_size" in overrides else {}
    fields = SHAPE | (EXPERTS if family == "qwen3_moe" else {}) | overrides
    if family == "qwen2":
        fields.pop("head_dim")  # of this family, always the hidden size over the heads
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**fields), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5, generator=generator)
            elif "embed" in name:
                parameter.normal_(generator=generator)
            else:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5, generator=generator)
    model.save_pretrained(directory, **save)
    return directory
