"""A process of ours, and everything that is heard while it runs: events, in one queue."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from minisgl_operator.local.pod import Probe, Process

ORDERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals by which a user tells us to end."""
_PATIENCE = (2.0, 8.0)
"""Seconds after the first SIGTERM, and after the second, by which a worker ends at once; then SIGKILL."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Order:
    number: int


@dataclass(frozen=True)
class Ended:
    """The child's exit status; negative: the signal that killed it."""

    status: int


@dataclass(frozen=True)
class Ready:
    pass


@dataclass(frozen=True)
class Failed:
    """A probe has given the worker up."""

    reason: str


@dataclass(frozen=True)
class Line:
    """Of the child's standard output."""

    text: str


Event = Order | Ended | Ready | Failed | Line
Events = SimpleQueue[Event]


@contextlib.contextmanager
def orders(events: Events) -> Iterator[None]:
    """Signals become events. `SimpleQueue.put` may be called in the middle of anything, itself included."""
    before = {number: signal.signal(number, lambda number, _: events.put(Order(number))) for number in ORDERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Child:
    """In a session of its own, so that Ctrl-C in the terminal is not for it; ends when this process dies.

    With `piped` its output comes as `Line` events and its errors are kept, else both go where ours go.
    """

    def __init__(self, process: Process, events: Events, *, piped: bool = False) -> None:
        self._events = events
        self._errors: list[str] = []
        pipe = subprocess.PIPE if piped else None
        sys.stdout.flush()  # what the child says comes after what we have said
        self._popen = subprocess.Popen(
            process.command,
            env=process.environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 - no thread of ours runs when a child is started
        )
        self._readers = [threading.Thread(target=self._read_lines, daemon=True)] if piped else []
        self._readers += [threading.Thread(target=self._read_errors, daemon=True)] if piped else []
        for thread in (*self._readers, threading.Thread(target=self._await_end, daemon=True)):
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it at once, if it still runs."""
        for seconds in _PATIENCE:
            if self._popen.poll() is None:
                self._popen.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(seconds)
        self.kill()
        self._popen.wait()

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def errors(self) -> list[str]:
        """The lines of its standard error, once it has ended."""
        return self._errors

    def _await_end(self) -> None:
        status = self._popen.wait()
        for reader in self._readers:
            reader.join()
        self._events.put(Ended(status))

    def _read_lines(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._events.put(Line(line))

    def _read_errors(self) -> None:
        assert self._popen.stderr is not None
        self._errors.extend(line.rstrip() for line in self._popen.stderr)


def _end_with_parent() -> Callable[[], None] | None:
    """What a new child does first, on Linux: ask for SIGTERM when its parent dies, however that dies."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died just before
            os._exit(1)

    return ask


def watch(url: str, startup: Probe, liveness: Probe, events: Events) -> None:
    """Probes, in a thread, until the worker is given up. `Ready` comes at most once."""
    threading.Thread(target=_watch, args=(url, startup, liveness, events), daemon=True).start()


def _watch(url: str, startup: Probe, liveness: Probe, events: Events) -> None:
    began = time.monotonic()
    if not any(_looks(url, startup, startup.failures)):
        events.put(Failed(f"not ready after {time.monotonic() - began:.0f} s (spec.probes.startupTimeoutSeconds)"))
        return
    events.put(Ready())
    failures = 0
    for answered in _looks(url, liveness):
        failures = 0 if answered else failures + 1
        if failures == liveness.failures:
            break
    events.put(Failed(f"{liveness.path} did not answer {failures} times in a row"))


def _looks(url: str, probe: Probe, times: int | None = None) -> Iterator[bool]:
    """Whether it answers, once a period; for ever without `times`."""
    for _ in itertools.count() if times is None else range(times):
        began = time.monotonic()
        yield _answers(url, probe)
        time.sleep(max(began + probe.period - time.monotonic(), 0))


def _answers(url: str, probe: Probe) -> bool:
    # Without the proxies of the environment, which do not know this machine's own ports.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url + probe.path, timeout=probe.timeout):
            return True
    except (OSError, ValueError):
        return False
