"""The other ranks of an `LLM`: processes that it starts, watches and ends."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence

from minisgl.core.config import SchedulerProcessConfig
from minisgl.utils.child import ChildHeader, ending, start_child

LEAVING_SECONDS = 5
"""That a rank has to end by itself."""
NOTICED_SECONDS = 2
"""That a rank's end may take to be known here after its connections have closed."""


class RankLostError(RuntimeError):
    """Another rank of the `LLM` has ended, and with it what all of them computed."""


class OtherRanks:
    """Ranks 1 and up."""

    def __init__(self, configs: Sequence[SchedulerProcessConfig]) -> None:
        """Starts them: one for each of `configs`."""
        self._processes = {
            f"scheduler-{config.engine.tp_rank}": start_child(
                "minisgl.scheduler.process",
                ChildHeader(name=f"scheduler-{config.engine.tp_rank}", log_level="warning"),
                config,
            )
            for config in configs
        }
        self._closing = False
        self._lock = threading.Lock()
        """For the first of several that end."""
        self._lost = threading.Event()
        self._reason = ""
        self._give_up: Callable[[], None] | None = None
        for name, process in self._processes.items():
            threading.Thread(target=self._wait, args=(name, process), daemon=True).start()

    def when_lost(self, give_up: Callable[[], None]) -> None:
        """Call `give_up`, once, in another thread, should a rank end or have ended; by then none is left."""
        with self._lock:
            self._give_up = give_up
            lost = self._lost.is_set()
        if lost:
            threading.Thread(target=give_up, daemon=True).start()

    def check(self, seconds: float = 0) -> None:
        """Raise `RankLostError` if a rank has ended, or ends within `seconds`."""
        if self._processes and self._lost.wait(seconds):
            raise RankLostError(f"{self._reason}: this LLM can compute no more")

    def expect_end(self) -> None:
        """From now on, a rank that ends as it was told to is not lost."""
        self._closing = True

    def stop(self) -> None:
        """Wait until they have ended, as they were told to; kill those that do not."""
        self.expect_end()
        for process in self._processes.values():
            try:
                process.wait(timeout=LEAVING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        with self._lock:
            if (self._closing and not status) or self._lost.is_set():
                return
            self._reason = f"{name} {ending(status)}"
            for other in self._processes.values():  # what they still send could hold up rank 0 again
                other.kill()
                other.wait()
            self._lost.set()
            give_up = self._give_up
        if give_up is not None:
            give_up()
