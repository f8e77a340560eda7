"""A real server of this engine, ``python -m minisgl`` with all its processes, while it is measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from bench import load
from bench.dummy import weightless
from minisgl.utils.errors import UserError

START_SECONDS = 600.0
POLL_SECONDS = 0.01

_SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Server:
    """Started when constructed; `ready` waits for it. Ended, with everything it started, by ``with``."""

    def __init__(self, model: Path, options: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the server
        self.started_at = time.monotonic()
        command = [sys.executable, "-m", "minisgl", "--model", str(model), "--port", "0"]
        command += ["--drain-grace", "0", "--drain-timeout", "0", *options]
        command += ["--dummy-weight"] if weightless(model) else []
        # An installation has Python's bytecode, and one that has not yet writes it at its first start.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)
        self._name = model.resolve().name
        self.url = ""
        """Its root, once it listens."""

    @property
    def target(self) -> load.Target:
        """For `bench.load`."""
        return load.Target(f"{self.url}/v1", self._name, key="")

    def ready(self, seconds: float = START_SECONDS) -> float:
        """Wait until ``GET /ready`` is answered with 200; returns the seconds since the start of the process.

        Raises `UserError` with the end of the log when it ends or takes longer than `seconds`.
        """
        while True:
            if not self.url:
                found = re.search(r"on (http://\S+) once it is loaded", self.log())
                self.url = found[1] if found else ""
            if self.url and self._asked_ready():
                return time.monotonic() - self.started_at
            status = self.process.poll()
            if status is not None or time.monotonic() - self.started_at > seconds:
                what = f"is not ready after {seconds:.0f} s" if status is None else f"ended with {status}"
                raise UserError(f"the server {what}:\n{self.log()[-3000:]}")
            time.sleep(POLL_SECONDS)

    def _asked_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):  # 503 is one too
            return False

    def metrics(self) -> dict[str, float]:
        """``/metrics``: each sample by its name; of `minisgl:start_seconds`, by its phase in brackets."""
        with urlopen(f"{self.url}/metrics", timeout=30) as response:
            return parse_metrics(response.read().decode())

    def log(self) -> str:
        """What its processes have written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time that each of its processes has taken, by the name of its module."""
        seconds: dict[str, float] = {}
        children = {self.process.pid}
        for pid in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue  # it has ended
            if int(fields[1]) in children and "-m" in arguments:  # processes are numbered after their parents
                children.add(pid)
                name = arguments[arguments.index("-m") + 1].removeprefix("minisgl.")
                ticks = int(fields[11]) + int(fields[12])  # utime and stime of proc(5)
                seconds[name] = seconds.get(name, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
        return seconds

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def parse_metrics(page: str) -> dict[str, float]:
    """Samples of Prometheus' text format. The label `model_name` is left out, others stand in brackets."""
    values: dict[str, float] = {}
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        labels = [value for name, value in _LABEL.findall(sample[2] or "") if name != "model_name"]
        key = sample[1] + (f"[{','.join(labels)}]" if labels else "")
        values[key] = values.get(key, 0.0) + float(sample[3])
    return values
