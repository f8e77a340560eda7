"""A child process whose behaviour a test chooses: ``python -m support.stub_child``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from minisgl.utils.child import run_child
from minisgl.utils.errors import UserError


class StubConfig(msgspec.Struct, frozen=True, kw_only=True):
    does: str
    """"serve", "exit", "user-error", "crash", "stubborn" (ignores SIGTERM), "drain" (serves until told to end),
    "tell" (writes the variable TOLD instead of its process id, and leaves)."""
    pid_file: str
    """Written when the process has begun."""
    status: int = 0


def main(name: str, config: StubConfig) -> None:
    stopped: list[int] = []
    if config.does == "drain":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: stopped.append(number))
    if config.does == "stubborn":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    Path(config.pid_file).write_text(os.environ["TOLD"] if config.does == "tell" else str(os.getpid()))
    match config.does:
        case "exit" | "tell":
            sys.exit(config.status)
        case "user-error":
            raise UserError("the checkpoint is cut short")
        case "crash":
            raise RuntimeError("boom")
    while not stopped:
        time.sleep(0.01)
    print(f"{name} drained by {signal.Signals(stopped[0]).name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_child(StubConfig, main)
