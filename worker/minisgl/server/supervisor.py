"""Starts the processes of a worker, waits on them, and ends them: a dead process is a dead worker."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Self

import msgspec

from minisgl.utils.child import EXIT_EXPLAINED, EXIT_USER_ERROR, ChildHeader, configure, ending, spawn

logger = logging.getLogger("minisgl.launcher")

STOP_SECONDS = 0.5
"""How long a process may take to leave after SIGTERM, before SIGKILL."""
KILL_SECONDS = 5.0
"""How long the system may take to clear away a killed process: freeing a GPU's memory takes a while."""
ORDERS = (signal.SIGTERM, signal.SIGINT)
"""The signals by which a worker is told to end."""


class Supervisor:
    """The processes of one launch. Made in the main thread, since it owns the signals from then on.

    The process started with `drains` is the one that is told to drain: SIGTERM is handed on as it is, SIGINT as
    SIGUSR1, which asks for no grace time. Its end then ends the worker well.
    """

    def __init__(self, header: ChildHeader, *, drain_seconds: float) -> None:
        self._header = header
        self._drain_seconds = drain_seconds
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._drains = ""
        self._terminal: str | None = None
        self._deadline: float | None = None
        """When a drain is given up, by `time.monotonic`. None: not draining."""
        self._wake, write_end = os.pipe()
        for end in (self._wake, write_end):
            os.set_blocking(end, False)
        # The interpreter writes each signal's number to the pipe; the handlers themselves have nothing to do.
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (*ORDERS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def start(
        self,
        name: str,
        module: str,
        config: msgspec.Struct,
        *,
        drains: bool = False,
        terminal: bool = False,
        pass_fds: Sequence[int] = (),
        spawned: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Start one process, or go on with one that is `spawned` already.

        To one with `terminal` the launcher leaves the terminal's Ctrl-C, and its end ends the worker well.
        """
        header = msgspec.structs.replace(self._header, name=name)
        child = self._children[name] = spawned or spawn(module, terminal=terminal, pass_fds=pass_fds)
        configure(child, header, config)
        if drains:
            self._drains = name
        if terminal:
            self._terminal = name

    def run(self) -> int:
        """Wait until the worker ends, for whatever reason; return the exit status of the launcher."""
        while True:
            status = self._judge(self._dead())
            if status is not None:
                return status
            for number in self._signals():
                if number not in ORDERS or (number == signal.SIGINT and self._terminal is not None):
                    continue
                if self._deadline is not None:
                    logger.warning("%s again: stopping at once", signal.Signals(number).name)
                    return 128 + number
                self._drain(number)

    def _drain(self, number: int) -> None:
        logger.info("%s: draining", signal.Signals(number).name)
        self._deadline = time.monotonic() + self._drain_seconds
        self._children[self._drains].send_signal(signal.SIGUSR1 if number == signal.SIGINT else number)

    def _dead(self) -> dict[str, int]:
        """Exit statuses of the processes that have ended."""
        dead = {name: child.returncode for name, child in self._children.items() if child.poll() is not None}
        if self._terminal is not None and dead.get(self._terminal) == 0:
            del dead[self._terminal], self._children[self._terminal]
            self._terminal = None
            if self._deadline is None:
                self._drain(signal.SIGINT)
        return dead

    def _judge(self, dead: dict[str, int]) -> int | None:
        """The launcher's exit status that `dead` amounts to. None: go on."""
        if self._deadline is not None:
            # It may have been told to end before it could handle the signal.
            if dead.get(self._drains) in (0, -signal.SIGTERM, -signal.SIGUSR1):
                return 0
            if time.monotonic() > self._deadline:
                logger.error("the worker did not drain in %.0f s", self._drain_seconds)
                return 1
        if EXIT_USER_ERROR in dead.values():
            return EXIT_USER_ERROR
        for name, status in dead.items():
            if status == EXIT_EXPLAINED:
                continue
            logger.error("%s %s: stopping the worker", name, ending(status))
        return 1 if dead else None

    def _signals(self) -> bytes:
        """Wait for signals, a child's end among them, but not past the deadline; return their numbers."""
        timeout = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0) + 0.01
        if select.select([self._wake], [], [], timeout)[0]:
            return os.read(self._wake, 4096)
        return b""

    def _stop(self) -> None:
        running = [child for child in self._children.values() if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0.0))
        for child in running:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(KILL_SECONDS)
