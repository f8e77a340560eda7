"""Judges grammars for a tokenizer worker: ``python -m minisgl.grammar.check_process MODEL_DIRECTORY``.

Some grammars recurse until the stack ends, or multiply until the memory does, and llguidance cannot be stopped
from within. So each is tried in a fork of its own, which the system ends when it has used its time, memory or
stack; what has passed there is no danger to a scheduler. This process has one thread: else it could not fork.

Standard input and output carry frames, a length of four bytes before the text: a grammar in, and out why no answer
can follow it, or nothing. It ends when its standard input does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from minisgl.grammar.compiler import Compiler
from minisgl.grammar.frames import read_frame, write_frame
from minisgl.utils.errors import UserError

CPU_SECONDS = 1.0
"""Time that one grammar may take."""
WALL_SECONDS = 10.0
"""The same where the machine is busy."""
MEMORY_BYTES = 256 << 20
"""Memory that one grammar may take."""
STACK_BYTES = 8 << 20
"""Stack that one grammar may take; a scheduler's threads have more."""

TOO_LONG = f"it takes more than {CPU_SECONDS:g} s to read: make it simpler"
TOO_LARGE = "it takes too much memory to read, or refers too deep: make it simpler"


def judge(compiler: Compiler, grammar: str) -> str:
    """Why no answer can follow `grammar`, found out in a fork; empty if one can."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _limit()
            with open(writer, "wb") as stream:
                stream.write((compiler.refusal(grammar) or "").encode())
        except BaseException:  # nothing of the parent's may run here
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        reason = stream.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return TOO_LONG if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else TOO_LARGE
    return reason if status == 0 else TOO_LARGE


def _limit() -> None:
    """Let the system end this process at its limits."""
    for sign in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(sign, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what is said of an overflow is told in a better way


def main(directory: str) -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    refusal, compiler = "", None
    try:
        compiler = Compiler.load(directory)
    except UserError as error:
        refusal = str(error)
    while (grammar := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, refusal if compiler is None else judge(compiler, grammar))


if __name__ == "__main__":
    main(sys.argv[1])
