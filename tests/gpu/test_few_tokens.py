"""The way of few tokens through a model's layers comes as near to float32 as the way of many."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.attention.base import Norms
from minisgl.distributed import Communicator
from minisgl.layers.rotary import rotate
from minisgl.models.checkpoint import inspect
from support.full_attention import FullAttention, full_logits
from support.loading import load_model
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

SHAPE = {"hidden_size": 320, "intermediate_size": 1200, "head_dim": 64}


class WholeAttention(FullAttention):
    """With the rotation, as in decode steps of few rows."""

    def __init__(self, kv_heads: int, windows: tuple[int | None, ...]) -> None:
        super().__init__(windows)
        self.kv_heads = kv_heads

    def whole(self, layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor:  # type: ignore[override]
        count = heads.shape[1] - 2 * self.kv_heads
        query, key, value = torch.split(heads, [count, self.kv_heads, self.kv_heads], dim=1)
        if norms is not None:
            query = F.rms_norm(query, query.shape[2:], norms[0], norms[2])
            key = F.rms_norm(key, key.shape[2:], norms[1], norms[2])
        return self(layer, rotate(query, rotation), rotate(key, rotation), value)


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_as_near_to_float32_as_many_tokens(family: str, tmp_path: Path) -> None:
    shape = SHAPE if family == "qwen3" else SHAPE | {"num_attention_heads": 5, "num_key_value_heads": 1}
    path = make_tiny_model(family, tmp_path / family, **shape)
    config = inspect(path)
    model = load_model(config, path, Communicator(), device=torch.device("cuda"), dtype=torch.bfloat16)
    few = model.few
    assert few >= 64
    attend = WholeAttention(config.num_kv_heads, config.windows)
    for count in (1, 2, 16, 17, few):
        tokens = torch.randint(512, (count,))
        exact = full_logits(Communicator(), path, tokens.tolist()).cuda()
        errors = []
        for most in (0, few):
            model.few = most
            with torch.inference_mode(), torch.device("cuda"):
                logits = model.logits(model(tokens.cuda(), torch.arange(count), attend)).float()
            errors.append(((logits - exact).norm() / exact.norm()).item())
        assert errors[1] < 1.2 * errors[0] + 1e-3, f"{count} tokens: {errors}"
