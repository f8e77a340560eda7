"""Model directories of known dimensions without weights: speed does not depend on what the numbers are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from minisgl.utils.errors import UserError

DIRECTORY = Path(".models") / "dimensions"

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "dtype": "bfloat16",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "Qwen3-14B": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 17408,
        "tie_word_embeddings": False,
    },
    "Qwen3-32B": {
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "intermediate_size": 25600,
        "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
}
"""What each adds to `QWEN3`."""


def model_path(text: str) -> Path:
    """The directory `text`, or one without weights that has the dimensions which `text` names."""
    path = Path(text)
    return path if path.is_dir() else model_directory(text)


def weightless(path: Path) -> bool:
    """Whether a model directory has no weights, so that they must be random."""
    return not any(path.glob("*.safetensors"))


def model_directory(name: str, root: Path = DIRECTORY) -> Path:
    """A directory with the dimensions of `name`, made if need be: config.json, and a tokenizer of as many tokens.
    Raises `UserError` for a name that is not in `CONFIGS`.
    """
    if name not in CONFIGS:
        raise UserError(f"--model {name}: no such directory; dimensions are known of {', '.join(CONFIGS)}")
    config = QWEN3 | CONFIGS[name]
    path = root / name
    if not (path / "config.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path) as fresh:  # another process may make the same
            _tokenizer(config["vocab_size"]).save(f"{fresh}/tokenizer.json")
            Path(fresh, "config.json").write_text(json.dumps(config, indent=2) + "\n")
            for name in ("tokenizer.json", "config.json"):
                Path(fresh, name).replace(path / name)
    return path


def _tokenizer(size: int) -> Tokenizer:
    """Bytes, then made-up words: every token is text, so that a stream has an event for each."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"\u0120w{index}" for index in range(len(pieces), size)]  # U+0120 stands for a space
    tokenizer = Tokenizer(BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
