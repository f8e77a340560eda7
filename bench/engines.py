"""The engines under test. Each answers a whole workload and returns when its last token is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Protocol
from urllib.request import Request, urlopen

import msgspec

from bench import load
from bench.workload import Workload
from minisgl.llm import LLM, SamplingParams
from minisgl.utils.errors import UserError


class Engine(Protocol):
    """Generates every request of a workload to its exact length."""

    def run(self, workload: Workload) -> list[float]:
        """Seconds until the last token of each kind of request that there is; empty if it knows of no kinds."""
        ...

    def close(self) -> None: ...


class MiniSGLang:
    """This engine, in this process, all requests at once. Prefixes of earlier runs are not kept."""

    def __init__(
        self, model: str, options: dict[str, Any], temperature: float, sampling: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """`sampling`: more of `SamplingParams`, which requests take in turn."""
        self.temperature = temperature
        self._sampling = sampling or ({},)
        self._llm = LLM(model, **({"cache": "naive"} | options))

    def run(self, workload: Workload) -> list[float]:
        params = [
            msgspec.convert(
                {"max_tokens": length, "temperature": self.temperature, "ignore_eos": True, **more}, SamplingParams
            )
            for length, more in zip(workload.output_lengths, cycle(self._sampling), strict=False)
        ]
        done = self._llm.generate(workload.prompts, params)
        assert sum(len(c.token_ids) for c in done) == workload.output_tokens
        kinds = len(self._sampling)
        return [max(c.seconds for c in done[kind::kinds]) for kind in range(min(kinds, len(done)))]

    def close(self) -> None:
        self._llm.close()


class Endpoint:
    """Any OpenAI endpoint that takes token ids and `ignore_eos`, such as this worker's: all requests at once."""

    def __init__(self, url: str) -> None:
        self._target = served(url)

    def run(self, workload: Workload) -> list[float]:
        bodies = [
            (0.0, self._target.completion(prompt, length))
            for prompt, length in zip(workload.prompts, workload.output_lengths, strict=True)
        ]
        answers = load.run(self._target, bodies, patience=3600).answers
        failed = next((answer.error for answer in answers if answer.error), None)
        if failed is not None:
            raise UserError(f"--url {self._target.url}: {failed}")
        assert sum(answer.tokens for answer in answers) == workload.output_tokens
        return []

    def close(self) -> None:
        pass


def served(url: str) -> load.Target:
    """The first model of an endpoint. Raises `UserError` when there is none."""
    target = load.Target(url.rstrip("/"))
    request = Request(
        f"{target.url}/models", headers={"authorization": f"Bearer {target.key}"} if target.key else {}
    )
    try:
        with urlopen(request, timeout=30) as response:
            target.model = json.load(response)["data"][0]["id"]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"--url {url}: no OpenAI endpoint with a model: {error}") from None
    return target
