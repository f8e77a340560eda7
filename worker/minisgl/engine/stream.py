"""Runs launched steps one after the other on a thread of their own, so that launching never waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch

from minisgl.core.batch import StepScores
from minisgl.engine.scores import StepResult


class StreamStep:
    """A launched step: `minisgl.core.batch.PendingStep`."""

    __slots__ = ("_done", "_error", "_result")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: StepResult
        self._error: BaseException | None = None

    def tokens(self) -> list[int]:
        """Wait for the step and return its tokens; raises what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result.tokens.tolist()

    def scores(self) -> StepScores | None:
        """After `tokens`: the log-probabilities that the step was asked for."""
        return self._result.scores()

    def run(self, step: Callable[[], StepResult]) -> BaseException | None:
        """Run `step` on the calling thread, and keep its result; returns what it raised."""
        try:
            self._result = step()
        except BaseException as error:
            self._error = error
        self._done.set()
        return self._error

    def fail(self, error: BaseException) -> None:
        """The step will not run."""
        self._error = error
        self._done.set()


class Stream:
    """A daemon thread: it does not keep a process alive, even one whose step waits for a dead rank."""

    def __init__(self, num_threads: int) -> None:
        """`num_threads`: of the operators that run on it."""
        self._queue: SimpleQueue[tuple[StreamStep, Callable[[], StepResult]] | None] = SimpleQueue()
        self._num_threads = num_threads
        self._thread = threading.Thread(target=self._run, name="engine-stream", daemon=True)
        self._thread.start()

    def launch(self, step: Callable[[], StepResult]) -> StreamStep:
        """Run `step` after those launched before, in inference mode.

        After a step that raised, the state that steps share is undefined: later ones raise the same at once.
        """
        pending = StreamStep()
        self._queue.put((pending, step))
        return pending

    def close(self) -> None:
        """Wait for the launched steps, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # OpenMP counts them for each thread that starts a region
        failed: BaseException | None = None
        with torch.inference_mode():
            while (item := self._queue.get()) is not None:
                pending, step = item
                if failed is None:
                    failed = pending.run(step)
                else:
                    pending.fail(failed)
                del item, pending, step  # a batch must not live until the next one comes
