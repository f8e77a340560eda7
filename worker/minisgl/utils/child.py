"""The life of a child process: configured by one line on its standard input, dead when its parent is.

The launcher keeps the other end of the child's standard input open and writes nothing more to it. When the
launcher dies, however it dies, the pipe closes and the child leaves at once, so that nothing is left behind.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from minisgl.utils.errors import UserError
from minisgl.utils.log import configure_logging

T = TypeVar("T", bound=msgspec.Struct)

EXIT_USER_ERROR = 2
"""Exit status of a process that met a `UserError`."""


class ChildHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What every child is told besides its own configuration."""

    name: str
    """Its name in logs and heartbeats, such as ``scheduler-0``."""
    log_level: str = "info"
    directory: str = ""
    """The launch's private directory, removed by a child that outlives the launcher."""


def start_child(
    module: str, header: ChildHeader, config: msgspec.Struct, *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, which calls `run_child`, in a session of its own: a terminal's Ctrl-C is not for it.

    The child lives no longer than the returned ``Popen.stdin`` is open.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, start_new_session=True, pass_fds=pass_fds
    )
    assert process.stdin is not None
    process.stdin.write(configuration_line(header, config))
    process.stdin.flush()
    return process


def configuration_line(header: ChildHeader, config: msgspec.Struct) -> bytes:
    """What the launcher writes to the standard input of a child."""
    return msgspec.json.encode([header, config]) + b"\n"


def run_child(kind: type[T], main: Callable[[str, T], None]) -> None:
    """Run ``main(name, config)`` in this process, with the configuration that the launcher wrote.

    A `UserError` becomes one line on standard error and exit status 2; any other exception a logged traceback
    and exit status 1.
    """
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(1)
    header, config = msgspec.json.decode(line, type=tuple[ChildHeader, kind])  # type: ignore[valid-type]
    configure_logging(header.name, header.log_level)
    threading.Thread(target=_leave_with_parent, args=(header.directory,), daemon=True).start()
    try:
        main(header.name, config)
    except UserError as error:
        print(f"minisgl: error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except Exception:
        logging.getLogger("minisgl").exception("%s failed", header.name)
        sys.stderr.flush()
        os._exit(1)  # not sys.exit: other threads may wait on what has just failed


def _leave_with_parent(directory: str) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)
