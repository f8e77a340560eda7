"""Whether greedy tokens computed in half precision are right: what `transformers` thinks of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

CLOSE = 5e-2
"""Log-probabilities may differ by this beyond what half precision alone makes of them."""


class Judge:
    """`transformers` on the GPU, with the weights in bfloat16, computing in float32 and in bfloat16."""

    def __init__(self, path: Path, *, misses: float = 0.0) -> None:
        """`misses`: share of the tokens that may be wrong all the same. Where two experts are nearly as likely,
        a rounding error exchanges them, and with them the token.
        """
        self._half: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
        self._whole: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().cuda().eval()
        self._misses = misses

    def check(self, cases: Sequence[tuple[list[int], list[int]]]) -> None:
        """Assert of each (prompt, tokens) that each token is the likeliest after those before it, or one of five
        that are as likely: no further behind than twice `CLOSE` and what bfloat16 costs `transformers` itself.
        """
        scores = [(self._score(self._whole, *case), self._score(self._half, *case)) for case in cases]
        noise = max(float((whole - half).abs().topk(2).values.median()) for whole, half in scores)
        allowed = 2 * (CLOSE + noise)
        wrong, total = [], 0
        for (whole, _), (_, tokens) in zip(scores, cases, strict=True):
            chosen = whole.gather(1, torch.tensor(tokens, device="cuda").unsqueeze(1))
            gaps, ranks = whole.amax(dim=1) - chosen.squeeze(1), (whole > chosen).sum(dim=1)
            wrong += [g for g, r in zip(gaps.tolist(), ranks.tolist(), strict=True) if g > allowed or r >= 5]
            total += len(tokens)
        assert len(wrong) <= self._misses * total, f"{len(wrong)} of {total}, allowed {allowed:.3f}: {wrong}"

    @staticmethod
    def _score(model: Any, prompt: list[int], tokens: list[int]) -> Tensor:
        """float32 [len(tokens), vocab]: log-probabilities where each of `tokens` stands."""
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens], device="cuda")).logits[0, len(prompt) - 1 : -1]
            return logits.float().log_softmax(dim=-1)  # type: ignore[no-any-return]
