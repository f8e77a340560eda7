"""For debugging: every rank compares each step with rank 0's before it launches it.

A rank that computes something else than the others gives wrong tokens, or waits for ever in a collective that the
others do not join. Compared before the launch, the difference itself is what is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import msgspec

from minisgl.core.batch import Batch, StepScores
from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.grammar.pool import MatcherPool
from minisgl.message import StepDigest
from minisgl.scheduler.scheduler import Scheduler, Step


class RanksDiffer(RuntimeError):
    """This rank is about to compute something else than rank 0."""


class ComparedScheduler(Scheduler):
    """A scheduler that raises `RanksDiffer` when a step, or a token of an earlier one, is not as on rank 0.

    Ranks schedule once a round, so each compares as often as the others, also when it has nothing to launch.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        limits: EngineLimits,
        eos_ids: Iterable[int],
        matchers: MatcherPool | None = None,
        *,
        rank: int,
        exchange: Callable[[StepDigest], StepDigest],
    ) -> None:
        """`exchange` is given this rank's digest and returns rank 0's."""
        super().__init__(config, limits, eos_ids, matchers)
        self._rank = rank
        self._exchange = exchange
        self._tokens: list[list[int]] = []
        """Of the steps completed since the last comparison."""

    def schedule(self) -> Step | None:
        step = super().schedule()
        batch = Batch() if step is None else step.batch
        parts = {field.name: _digest(getattr(batch, field.name)) for field in fields(Batch)}
        parts["requests"] = _digest([] if step is None else [request.uid for request in step.requests])
        parts["sampled tokens"] = _digest(self._tokens)
        self._tokens = []
        reference = self._exchange(StepDigest(step=self.stats.steps, parts=parts))
        if reference.parts != parts:
            different = ", ".join(name for name in parts if parts[name] != reference.parts[name])
            raise RanksDiffer(f"rank {self._rank} differs from rank 0 at step {reference.step}: {different}")
        return step

    def complete(self, step: Step, tokens: list[int], scores: StepScores | None = None) -> None:
        self._tokens.append(tokens)
        super().complete(step, tokens, scores)


def _digest(part: Any) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(part), digest_size=8).digest()
