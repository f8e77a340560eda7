"""What FP8 costs a real model, on texts: its log-probabilities beside those of bfloat16.

The bounds come from the same model in float32 on a CPU, with weights, inputs, queries, keys and values rounded as
the GPU rounds them: mean difference, loss and agreement were 0.20, 0.028 and 0.88 for weights, 0.12, 0.007 and
0.94 for the KV cache, 0.23, 0.031 and 0.86 for both. Scales that are wrong by a twentieth were beyond the
bounds of mean and loss: 0.28 and 0.084 for weights, 0.19 and 0.042 for the KV cache. Another row's cost 14 nats.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support.scores import difference, scores

REPOSITORY = Path(__file__).parent.parent.parent
MODEL = REPOSITORY / ".models" / "SmolLM2-135M-Instruct"
DOCUMENTS = ("README.md", "docs/operations.md", "docs/tour.md", "docs/images.md")
LENGTH = 256

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU"),
    pytest.mark.skipif(find_spec("flashinfer") is None, reason="needs flashinfer-python"),
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="needs the model of `make model`"),
]


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """The first 512 tokens of each document, in two parts."""
    tokenizer: Any = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    documents = [tokenizer.encode((REPOSITORY / name).read_text()).ids for name in DOCUMENTS]
    return [ids[start : start + LENGTH] for ids in documents for start in (0, LENGTH)]


@pytest.fixture(scope="module")
def in_bfloat16(texts: list[list[int]]) -> Tensor:
    return scores(MODEL, texts, chunks=(LENGTH // 2,))


@pytest.mark.parametrize(
    ("options", "mean", "loss", "agreement"),
    [
        ({"quantization": "fp8"}, 0.25, 0.06, 0.85),
        ({"kv_cache_dtype": "fp8"}, 0.15, 0.025, 0.91),
        ({"quantization": "fp8", "kv_cache_dtype": "fp8"}, 0.28, 0.07, 0.83),
    ],
    ids=["weights", "KV cache", "both"],
)
def test_the_real_model_is_nearly_as_good_in_fp8(
    options: dict[str, Any],
    mean: float,
    loss: float,
    agreement: float,
    texts: list[list[int]],
    in_bfloat16: Tensor,
) -> None:
    found = difference(scores(MODEL, texts, chunks=(LENGTH // 2,), **options), in_bfloat16, texts)
    assert found.mean < mean and abs(found.loss) < loss and found.agreement > agreement, found
