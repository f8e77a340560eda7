"""Greedy text as `transformers` gives it, one prompt at a time, and how to compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

TIE = 1e-3
"""Logits closer than this in float32 are a tie: either token is right."""


@dataclass(frozen=True)
class Reference:
    """The greedy continuation of one prompt."""

    prompt: list[int]
    tokens: list[int]
    """Generated tokens; the last may be an end of sequence."""
    gaps: list[float]
    """For each generated token, how far its logit is above the next best."""

    def agrees(self, tokens: list[int]) -> bool:
        """Whether `tokens` are the same, or part from these at a tie."""
        for ours, theirs, gap in zip(self.tokens, tokens, self.gaps, strict=False):
            if ours != theirs:
                return gap < TIE
        return len(self.tokens) == len(tokens)

    def certain_tokens(self) -> list[int]:
        """The tokens before the first tie."""
        first = next((i for i, gap in enumerate(self.gaps) if gap < TIE), len(self.tokens))
        return self.tokens[:first]


class GreedyReference:
    """A model of `transformers` in float32."""

    def __init__(self, path: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._eos = self._model.generation_config.eos_token_id

    def generate(self, prompt: list[int], max_tokens: int, *, ignore_eos: bool = False) -> Reference:
        """Continue `prompt` by up to `max_tokens` tokens, with the KV cache of `transformers`."""
        self._model.generation_config.eos_token_id = None if ignore_eos else self._eos
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[0, len(prompt) :].tolist()
        top = torch.cat(out.logits).topk(2).values
        return Reference(prompt, tokens, (top[:, 0] - top[:, 1]).tolist())
