"""The life of a child process: configured by one line on its standard input, dead when its parent is.

The launcher keeps the other end of the child's standard input open and writes nothing more to it. When the
launcher dies, however it dies, the pipe closes and the child leaves at once, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

import msgspec

from minisgl.utils.errors import UserError
from minisgl.utils.log import LogFormat, configure_logging, say_error

T = TypeVar("T", bound=msgspec.Struct)

EXIT_USER_ERROR = 2
"""Exit status of a process that met a `UserError`."""
EXIT_EXPLAINED = 3
"""Exit status of a process that has logged why the worker must end."""


CHILD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What a child finds in its environment unless the user has set it.

OpenMP's threads would spin while they wait for each other, and take the cores from the worker's other processes.
"""


class ChildHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What every child is told besides its own configuration."""

    name: str
    """Its name in logs and heartbeats, such as ``scheduler-0``."""
    log_level: str = "info"
    log_format: LogFormat = "text"
    directory: str = ""
    """The launch's private directory, removed by a child that outlives the launcher."""
    environment: dict[str, str] = {}
    """Variables that the launcher has set since it spawned the child."""


def start_child(
    module: str,
    header: ChildHeader,
    config: msgspec.Struct,
    *,
    terminal: bool = False,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """`spawn` a child and `configure` it."""
    process = spawn(module, terminal=terminal, pass_fds=pass_fds)
    configure(process, header, config)
    return process


def spawn(module: str, *, terminal: bool = False, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, which calls `run_child`, in a session of its own: Ctrl-C is not for it.

    With `terminal` it keeps the terminal and its signals, and its last argument is the descriptor that it finds
    its configuration on. The child lives no longer than the returned ``Popen.stdin`` is open.
    """
    command = [sys.executable, "-m", module]
    environment = CHILD_ENVIRONMENT | os.environ
    if terminal:
        read_end, write_end = os.pipe()
        process = subprocess.Popen([*command, str(read_end)], pass_fds=(*pass_fds, read_end), env=environment)
        os.close(read_end)
        process.stdin = open(write_end, "wb", buffering=0)  # noqa: SIM115  held open for the child's life
    else:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, pass_fds=pass_fds, env=environment
        )
    return process


def configure(process: subprocess.Popen[bytes], header: ChildHeader, config: msgspec.Struct) -> None:
    """Tell a spawned child what it is."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already, and its exit status says why
        process.stdin.write(configuration_line(header, config))
        process.stdin.flush()


def configuration_line(header: ChildHeader, config: msgspec.Struct) -> bytes:
    """What the launcher writes to the standard input of a child."""
    return msgspec.json.encode([header, config]) + b"\n"


def ending(status: int) -> str:
    """How a process ended, from its `Popen.returncode`: ``exited with status 1``, ``was killed by SIGKILL``."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def run_child(
    kind: type[T], main: Callable[[str, T], None], source: int = 0, ahead: Callable[[], None] | None = None
) -> None:
    """Run ``main(name, config)`` in this process, with the configuration that the launcher wrote.

    `source` is the descriptor to read it from: standard input, but for a child that talks to the terminal.
    `ahead` is called at once, before the launcher may know what to write.

    A `UserError` becomes one line on standard error, the first of a launch alone, and exit status 2; any other
    exception a logged traceback and exit status 1. SIGUSR2 prints what every thread is doing.
    """
    faulthandler.register(signal.SIGUSR2)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(source, lines), daemon=True).start()
    if ahead is not None:
        ahead()
    header, config = msgspec.json.decode(lines.get(), type=tuple[ChildHeader, kind])  # type: ignore[valid-type]
    os.environ.update(header.environment)
    configure_logging(header.name, header.log_level, header.log_format)
    try:
        main(header.name, config)
    except UserError as error:
        if _is_first(header.directory):
            say_error(error, header.log_format)
        sys.exit(EXIT_USER_ERROR)
    except Exception:
        logging.getLogger("minisgl").exception("%s failed", header.name)
        sys.stderr.flush()
        os._exit(1)  # not sys.exit: other threads may wait on what has just failed


def _is_first(directory: str) -> bool:
    """Whether no other process of the launch has met a `UserError`: they often meet the same one."""
    if directory:
        try:
            os.close(os.open(os.path.join(directory, "user-error"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:  # the launch is over and its directory gone
            pass
    return True


def _listen(source: int, lines: SimpleQueue[bytes]) -> None:
    """Pass the launcher's line on, then wait for the launcher's end, and leave with it."""
    directory = ""
    with open(source, "rb", buffering=0, closefd=False) as stream:
        if line := stream.readline():
            directory = msgspec.json.decode(line, type=tuple[ChildHeader, msgspec.Raw])[0].directory
            lines.put(line)
            while stream.read(4096):
                pass
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)
