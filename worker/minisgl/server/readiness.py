"""Whether this worker serves, and if not, why: the answer of ``/ready`` and the gate before every request.

Also whether it ever will again: a rank that hangs makes the others wait for ever, so the worker ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import Enum

from minisgl.core.config import EngineLimits
from minisgl.message import Heartbeat, SchedulerReady

FRESH_SECONDS = 30.0
"""A process whose loop stood still for longer does not serve, whatever it said before."""
SILENT_SECONDS = 15
"""A rank that sent no heartbeat for so long hangs: the thread that sends them waits for nobody."""
STUCK_SECONDS = 600
"""A rank whose loop stood still for so long hangs, or waits for one that does: far longer than any step takes."""


class Phase(Enum):
    """How far the end of the worker is."""

    SERVING = "serving"
    DRAINING = "draining"
    """Told to end. Not ready any more, but new requests are still served: load balancers hear of it late."""
    REFUSING = "refusing"
    """Only what is in flight is still served."""


class _Process:
    """What is known of one process."""

    def __init__(self) -> None:
        self.moved_at: float | None = None
        """When its loop was last seen to move. None: it has not started yet."""
        self.rounds: int | None = None
        self.silent = 0
        """Calls of `Readiness.hanging` since its last heartbeat."""
        self.still = 0
        """Calls of `Readiness.hanging` since its loop was last seen to move."""


class Readiness:
    """What the processes said of themselves, and when."""

    def __init__(self, processes: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._processes = {process: _Process() for process in processes}
        self.limits: EngineLimits | None = None
        """What the engine can hold. None: still loading."""
        self.phase = Phase.SERVING

    def heard(self, message: Heartbeat | SchedulerReady) -> None:
        if isinstance(message, SchedulerReady):
            self.limits = message.limits
        elif process := self._processes.get(message.process):
            process.silent = 0
            if message.rounds is None or message.rounds != process.rounds:
                process.moved_at, process.rounds, process.still = self._clock(), message.rounds, 0

    def hanging(self) -> str | None:
        """Which ranks hang, to be asked every second. None: none.

        Time is counted in calls, so that a worker that was suspended as a whole is not taken for one that hangs.
        """
        ranks = {name: process for name, process in self._processes.items() if process.rounds is not None}
        for process in ranks.values():
            process.silent += 1
            process.still += 1
        silent = [name for name, process in ranks.items() if process.silent > SILENT_SECONDS]
        if silent:
            return f"{', '.join(silent)}: no sign of life for {SILENT_SECONDS} s"
        stuck = {name: process.rounds or 0 for name, process in ranks.items() if process.still > STUCK_SECONDS}
        # Those that wait for another rank have come further, by the step that they wait in.
        last = [name for name, rounds in stuck.items() if rounds == min(stuck.values())]
        return f"{', '.join(last)}: stuck in a step for {STUCK_SECONDS} s" if last else None

    def trouble(self) -> str | None:
        """Why the worker cannot serve a request now. None: it can."""
        moved = {name: process.moved_at for name, process in self._processes.items()}
        missing = [name for name, moved_at in moved.items() if moved_at is None]
        if self.limits is None or missing:
            return f"loading: waiting for {', '.join(missing) or 'the scheduler'}"
        now = self._clock()
        silent = {name: now - moved_at for name, moved_at in moved.items() if moved_at is not None}
        stale = [f"{name} ({age:.0f} s)" for name, age in silent.items() if age > FRESH_SECONDS]
        return f"no sign of life from {', '.join(stale)}" if stale else None

    def reason(self) -> str | None:
        """Why the worker should get no new traffic. None: it is ready."""
        return "draining: the worker was told to end" if self.phase is not Phase.SERVING else self.trouble()
