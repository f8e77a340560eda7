"""Whether this worker serves, and if not, why: the answer of ``/ready`` and the gate before every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import Enum

from minisgl.core.config import EngineLimits
from minisgl.message import Heartbeat, SchedulerReady

FRESH_SECONDS = 30.0
"""A process that was silent for longer does not serve, whatever it said before."""


class Phase(Enum):
    """How far the end of the worker is."""

    SERVING = "serving"
    DRAINING = "draining"
    """Told to end. Not ready any more, but new requests are still served: load balancers hear of it late."""
    REFUSING = "refusing"
    """Only what is in flight is still served."""


class Readiness:
    """What the processes said of themselves, and when."""

    def __init__(self, processes: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_beat: dict[str, float | None] = dict.fromkeys(processes)
        self.limits: EngineLimits | None = None
        """What the engine can hold. None: still loading."""
        self.phase = Phase.SERVING

    def heard(self, message: Heartbeat | SchedulerReady) -> None:
        if isinstance(message, SchedulerReady):
            self.limits = message.limits
        elif message.process in self._last_beat:
            self._last_beat[message.process] = self._clock()

    def trouble(self) -> str | None:
        """Why the worker cannot serve a request now. None: it can."""
        missing = [process for process, beat in self._last_beat.items() if beat is None]
        if self.limits is None or missing:
            return f"loading: waiting for {', '.join(missing) or 'the scheduler'}"
        now = self._clock()
        silent = {process: now - beat for process, beat in self._last_beat.items() if beat is not None}
        stale = [f"{process} ({age:.0f} s)" for process, age in silent.items() if age > FRESH_SECONDS]
        return f"no sign of life from {', '.join(stale)}" if stale else None

    def reason(self) -> str | None:
        """Why the worker should get no new traffic. None: it is ready."""
        return "draining: the worker was told to end" if self.phase is not Phase.SERVING else self.trouble()
