"""A model without weights, for ``--dummy-weight``: a small Llama with a real tokenizer, quick to load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 49152,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "dtype": "float32",
}


def make_dummy_model(directory: Path, tokenizer: Path) -> Path:
    """Write it to `directory`, with the tokenizer files of the model directory `tokenizer`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, directory)
    return directory
