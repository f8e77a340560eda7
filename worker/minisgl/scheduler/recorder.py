"""What the last steps were, for who asks later: when each ran, who decoded in it, whose prompts it read.

A step costs two looks at the clock and two tuples. The scheduler never reads any of it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from minisgl.core.batch import StepScores
from minisgl.message import StepRecord, Timeline
from minisgl.scheduler.agreement import ComparedScheduler
from minisgl.scheduler.scheduler import Scheduler, Step

CAPACITY = 256
"""Steps that are kept."""


_Read = tuple[tuple[int, int], ...]
"""Requests whose prompts a step read, and how many tokens of each."""


class Recorder:
    """The last steps of one scheduler."""

    def __init__(self) -> None:
        self._launched: deque[tuple[float, tuple[int, ...], _Read]] = deque()
        """When, who decodes, what is read."""
        self._records: deque[tuple[float, float, tuple[int, ...], _Read]] = deque(maxlen=CAPACITY)
        """Start and end, then as above. Bare tuples: a named one takes three times as long to make."""
        self._count = 0
        self._taken = 0
        """Steps before this one were given to `take`."""
        self._ended = 0.0
        """When the newest record's step ended."""
        self._rows: list[int] | None = None
        self._decoded: tuple[int, ...] = ()
        """The requests of `_rows`, the decode rows of the newest step."""

    def launched(self, step: Step, partial: int) -> None:
        """`step` is about to run. `partial` is the id of the request whose prompt it leaves half read, if any."""
        batch, requests = step.batch, step.requests
        rows = batch.decode_rows
        # The scheduler hands out the same list while nobody joins or leaves.
        if rows is not self._rows or batch.joined:
            self._rows = rows
            self._decoded = tuple([request.uid for request in requests[: len(rows)]])
        read: _Read = ()
        if batch.prefill:
            sampled = iter(requests[len(rows) :])
            read = tuple(
                [(next(sampled).uid if chunk.sample else partial, len(chunk.tokens)) for chunk in batch.prefill]
            )
        self._launched.append((time.monotonic(), self._decoded, read))

    def completed(self) -> None:
        """The oldest launched step has its tokens. It began when it was launched, but after the one before it."""
        launched, decoded, read = self._launched.popleft()
        now = time.monotonic()
        started = launched if launched > self._ended else self._ended
        self._records.append((started, now, decoded, read))
        self._count += 1
        self._ended = now

    def take(self) -> Timeline | None:
        """The steps since the last call, as far as they are kept; None when there were none."""
        timeline = Timeline()
        last: tuple[int, ...] | None = None
        for number, (started, ended, decoded, read) in enumerate(self._records, self._count - len(self._records)):
            if number < self._taken:
                continue
            if decoded is not last:
                last = decoded
                timeline.crowds.append(list(last))
            crowd = len(timeline.crowds) - 1
            timeline.steps.append(StepRecord(number, started, ended - started, crowd, list(read)))
        self._taken = self._count
        return timeline if timeline.steps else None


class RecordedScheduler(Scheduler):
    """A scheduler whose steps `recorder` is told of. It takes what the class after it takes, besides."""

    def __init__(self, *rules: Any, recorder: Recorder, **options: Any) -> None:
        super().__init__(*rules, **options)
        self._recorder = recorder

    def schedule(self) -> Step | None:
        step = super().schedule()
        if step is not None:
            partial = self.prefill.partial
            self._recorder.launched(step, -1 if partial is None else partial.uid)
        return step

    def complete(self, step: Step, tokens: list[int], scores: StepScores | None = None) -> None:
        self._recorder.completed()
        super().complete(step, tokens, scores)


class RecordedComparedScheduler(RecordedScheduler, ComparedScheduler):
    """Both."""
