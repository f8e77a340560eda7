"""Whether greedy tokens computed in half precision are right: what `transformers` thinks of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

GAP = 0.1
"""Log-probabilities may differ by 5e-2: two that are equal in one place may be twice that apart in another."""


class Judge:
    """The model in float32 with its weights rounded to bfloat16, on the GPU."""

    def __init__(self, path: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().cuda().eval()

    def check(self, prompt: list[int], tokens: list[int]) -> None:
        """Assert that each token is the likeliest after those before it, or one of five that are as likely."""
        ids = torch.tensor([prompt + tokens], device="cuda")
        with torch.inference_mode():
            scores = self._model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        chosen = scores.gather(1, ids[0, len(prompt) :].unsqueeze(1))
        gaps = scores.amax(dim=1) - chosen.squeeze(1)
        ranks = (scores > chosen).sum(dim=1)
        assert gaps.max() <= GAP and ranks.max() < 5, f"gaps {gaps.tolist()}, ranks {ranks.tolist()}"
