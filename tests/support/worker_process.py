"""The real worker as its user starts it: ``python -m minisgl``, all its processes, a real port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil

START_SECONDS = 120


class WorkerProcess:
    """Starts a worker and stops it; `url` is its root. Its logs are in `log()`."""

    def __init__(self, model: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minisgl", "--model", str(model), "--port", str(self.port), *options],
            stdout=self._log,
            stderr=self._log,
            env=os.environ | (env or {}),
        )

    def wait_ready(self) -> WorkerProcess:
        """Wait for ``/ready``; raises with the log when the worker ends instead."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.log()}")
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s:\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        """Everything the worker's processes have written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def children(self) -> dict[str, psutil.Process]:
        """The worker's processes by the module they run and, among equals, their order."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                arguments = child.cmdline()
            except psutil.Error:
                continue
            if "-m" in arguments:
                module = arguments[arguments.index("-m") + 1].removeprefix("minisgl.")
                same = sum(name.startswith(module) for name in found)
                found[f"{module}-{same}"] = child
        return found

    def metrics(self) -> dict[str, float]:
        """The samples of ``/metrics`` by name, summed over their labels."""
        values: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics").raise_for_status().text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Signal the worker and wait for its end; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        died = self.process.poll() not in (None, 0)
        children = [] if self.process.poll() is not None else list(self.children().values())
        self.process.kill()
        self.process.wait()
        for child in children:  # the test may have broken what ends them
            if child.is_running():
                child.wait(5)
        if error is not None or died:
            print(self.log(), file=sys.stderr)
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
