"""``transformers`` as an engine under test. Apart from the others, because its import takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.workload import Workload


class Transformers:
    """``transformers.generate`` in this process, greedy, with its KV cache: one request after the other."""

    def __init__(self, model: str, dtype: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._model.generation_config.eos_token_id = None  # generate to the exact length

    def run(self, workload: Workload) -> list[float]:
        for prompt, length in zip(workload.prompts, workload.output_lengths, strict=True):
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                out = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=length,
                    do_sample=False,
                )
            assert out.shape[1] == len(prompt) + length
        return []

    def close(self) -> None:
        del self._model
