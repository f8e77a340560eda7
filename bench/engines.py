"""The engines under test. Each answers a whole workload and returns when its last token is there."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Protocol

import httpx
import torch
from transformers import AutoModelForCausalLM

from bench.workload import Workload
from minisgl.llm import LLM, SamplingParams


class Engine(Protocol):
    """Generates every request of a workload to its exact length."""

    def run(self, workload: Workload) -> None: ...

    def close(self) -> None: ...


class MiniSGLang:
    """This engine, in this process, all requests at once. Prefixes of earlier runs are not kept."""

    def __init__(self, model: str, options: dict[str, Any], temperature: float) -> None:
        self._temperature = temperature
        self._llm = LLM(model, **({"cache": "naive"} | options))

    def run(self, workload: Workload) -> None:
        params = [
            SamplingParams(max_tokens=length, temperature=self._temperature, ignore_eos=True)
            for length in workload.output_lengths
        ]
        done = self._llm.generate(workload.prompts, params)
        assert sum(len(c.token_ids) for c in done) == workload.output_tokens

    def close(self) -> None:
        self._llm.close()


class Transformers:
    """``transformers.generate`` in this process, greedy, with its KV cache: one request after the other."""

    def __init__(self, model: str, dtype: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._model.generation_config.eos_token_id = None  # generate to the exact length

    def run(self, workload: Workload) -> None:
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

    def close(self) -> None:
        del self._model


class Endpoint:
    """Any OpenAI endpoint that takes token ids and `ignore_eos`, such as this worker's: all requests at once."""

    def __init__(self, url: str, model: str | None) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        self._client_options: dict[str, Any] = {
            "base_url": url.rstrip("/"),
            "timeout": None,
            "headers": {"authorization": f"Bearer {key}"} if key else {},
        }
        if model is None:
            models = httpx.get(f"{url.rstrip('/')}/models", headers=self._client_options["headers"])
            model = models.raise_for_status().json()["data"][0]["id"]
        self._model = model

    def run(self, workload: Workload) -> None:
        asyncio.run(self._run(workload))

    async def _run(self, workload: Workload) -> None:
        async with httpx.AsyncClient(**self._client_options) as client:
            answers = await asyncio.gather(
                *(
                    client.post(
                        "/completions",
                        json={
                            "model": self._model,
                            "prompt": prompt,
                            "max_tokens": length,
                            "temperature": 0,
                            "ignore_eos": True,
                        },
                    )
                    for prompt, length in zip(workload.prompts, workload.output_lengths, strict=True)
                )
            )
        generated = sum(a.raise_for_status().json()["usage"]["completion_tokens"] for a in answers)
        assert generated == workload.output_tokens

    def close(self) -> None:
        pass
