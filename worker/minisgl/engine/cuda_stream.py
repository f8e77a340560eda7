"""Launches steps on a CUDA stream from the caller's thread: the device queues them, so that it never waits."""

from __future__ import annotations

from collections.abc import Callable

import torch

from minisgl.core.batch import StepScores
from minisgl.engine.scores import StepResult


class CudaStep:
    """A launched step: `minisgl.core.batch.PendingStep`."""

    __slots__ = ("_done", "_result")

    def __init__(self, result: StepResult) -> None:
        """`result`: on the device of the current stream."""
        # Pinned memory of its own, which torch does not reuse while the copy may still write to it.
        self._result = result.to_host()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def tokens(self) -> list[int]:
        """Wait for the step and return its tokens; raises `RuntimeError` when a kernel failed."""
        self._done.synchronize()
        return self._result.tokens.tolist()

    def scores(self) -> StepScores | None:
        """After `tokens`: the log-probabilities that the step was asked for."""
        return self._result.scores()


class CudaStream:
    """The one stream that the engine's work is on."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def launch(self, step: Callable[[], StepResult]) -> CudaStep:
        """Run `step`, which launches work, in inference mode; raises what it raises."""
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            return CudaStep(step())

    def close(self) -> None:
        """Wait for the launched steps."""
        self.stream.synchronize()
