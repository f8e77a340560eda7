"""Launches steps on a CUDA stream from the caller's thread: the device queues them, so that it never waits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaStep:
    """A launched step: `minisgl.core.batch.PendingStep`."""

    __slots__ = ("_done", "_tokens")

    def __init__(self, tokens: Tensor) -> None:
        """`tokens`: int64 [S], on the device of the current stream."""
        # Pinned memory of its own, which torch does not reuse while the copy may still write to it.
        self._tokens = tokens.to("cpu", non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def tokens(self) -> list[int]:
        """Wait for the step and return its tokens; raises `RuntimeError` when a kernel failed."""
        self._done.synchronize()
        return self._tokens.tolist()


class CudaStream:
    """The one stream that the engine's work is on."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def launch(self, step: Callable[[], Tensor]) -> CudaStep:
        """Run `step`, which launches work and returns int64 [S], in inference mode; raises what it raises."""
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            return CudaStep(step())

    def close(self) -> None:
        """Wait for the launched steps."""
        self.stream.synchronize()
