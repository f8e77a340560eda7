"""The real operator as a process, against the cluster of a kubeconfig."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.envtest import free_ports, wait_until

IMAGES = ("--worker-image", "example.com/worker:1", "--cpu-worker-image", "example.com/worker-cpu:1")


class OperatorProcess:
    """`minisgl-operator run`, healthy when entered, and ended by SIGTERM when left."""

    def __init__(self, kubeconfig: Path, arguments: Sequence[str] = IMAGES) -> None:
        self.health_port, self.metrics_port = free_ports(2)
        self._log = Path(tempfile.mkstemp(prefix="operator-", suffix=".log")[1])
        ports = ["--health-port", str(self.health_port), "--metrics-port", str(self.metrics_port)]
        self._command = [sys.executable, "-m", "minisgl_operator", "run", *arguments, *ports]
        self._environ = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self.popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as stream:
            return subprocess.Popen(self._command, env=self._environ, stdout=stream, stderr=subprocess.STDOUT)

    def restart(self) -> None:
        """Ended or killed, it starts again with the same arguments."""
        self.kill()
        self.popen = self._start()
        wait_until("the operator's health", self.is_healthy, 60)

    def __enter__(self) -> Self:
        wait_until("the operator's health", self.is_healthy, 60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            print("\n".join(self.log().splitlines()[-60:]))
        self._log.unlink()

    def is_healthy(self) -> bool:
        if self.popen.poll() is not None:
            raise AssertionError(f"the operator ended with status {self.popen.returncode}:\n{self.log()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def log(self) -> str:
        return self._log.read_text(errors="replace")
