"""Log-probabilities of the tokens that were chosen, or given, and of the most likely ones in their place.

They are of the model's own logits, in float32. What a step was asked for stays on the device until its tokens are
copied to the host, and is copied with them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minisgl.core.batch import StepScores, TokenScore

SLICE = 128
"""Positions whose logits are in float32, or computed for a prompt, at once: bounds the memory."""


class Scored(NamedTuple):
    """Log-probabilities at N positions."""

    asked: list[tuple[int, int]]
    """For each, the token of the result, or the chunk, that it is about, and how many likely tokens are wanted."""
    values: Tensor
    """float32 [N, 1 + K]: of the token itself, and of the K most likely ones, the most likely first."""
    ids: Tensor
    """int64 [N, K]: of the most likely ones."""

    @staticmethod
    def joined(asked: list[tuple[int, int]], parts: list[tuple[Tensor, Tensor]]) -> Scored:
        """From what `score` returned for one part after the other."""
        values, ids = zip(*parts, strict=True)
        return Scored(asked, torch.cat(values), torch.cat(ids))

    def to_host(self) -> Scored:
        """A copy that is there when the device has done what it was given before, and this."""
        return Scored(self.asked, self.values.to("cpu", non_blocking=True), self.ids.to("cpu", non_blocking=True))

    def read(self) -> list[tuple[int, TokenScore]]:
        """What was asked for, each with the place that it belongs to."""
        return [
            (place, TokenScore(logprob, ids[:k], top[:k]))
            for (place, k), (logprob, *top), ids in zip(
                self.asked, self.values.tolist(), self.ids.tolist(), strict=True
            )
        ]


class StepResult(NamedTuple):
    """What a step leaves on the device."""

    tokens: Tensor
    """int64 [S], as `minisgl.core.batch.Batch` orders them."""
    sampled: Scored | None = None
    """Of tokens of the result."""
    prompt: Scored | None = None
    """Of targets of chunks."""

    def to_host(self) -> StepResult:
        """As `Scored.to_host`."""
        return StepResult(
            self.tokens.to("cpu", non_blocking=True),
            self.sampled and self.sampled.to_host(),
            self.prompt and self.prompt.to_host(),
        )

    def scores(self) -> StepScores | None:
        """After `to_host`."""
        if self.sampled is None and self.prompt is None:
            return None
        prompt: dict[int, list[TokenScore]] = {}
        for chunk, score in self.prompt.read() if self.prompt else ():
            prompt.setdefault(chunk, []).append(score)
        return StepScores(dict(self.sampled.read()) if self.sampled else {}, prompt)


class Question(NamedTuple):
    """Tokens of a step's result whose log-probabilities are asked for."""

    asked: list[tuple[int, int]]
    """As in `Scored`."""
    places: Tensor
    """int64 [N]: the first of each pair."""


class Scoring:
    """Begun while the logits are the model's own; finished when the tokens are chosen."""

    def __init__(self, question: Question, logits: Tensor) -> None:
        """logits [S, vocab], which may change from now on."""
        self._question = question
        self._logits = logits.index_select(0, question.places)

    def finish(self, tokens: Tensor) -> Scored:
        """tokens int64 [S]."""
        asked, places = self._question
        width = max(k for _, k in asked)
        chosen = torch.split(tokens.index_select(0, places), SLICE)
        parts = zip(torch.split(self._logits, SLICE), chosen, strict=True)
        return Scored.joined(asked, [score(*part, width) for part in parts])


def score(logits: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """logits [N, vocab], and what came after, int64 [N] -> `Scored.values` and `Scored.ids`, K = `width`."""
    logits = logits.float()
    top = logits.topk(min(width, logits.shape[1]))
    values = torch.cat((logits.gather(1, tokens.unsqueeze(1)), top.values), dim=1)
    return values - logits.logsumexp(dim=1, keepdim=True), top.indices
