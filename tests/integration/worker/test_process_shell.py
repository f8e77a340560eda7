"""``--shell``: the chat in the terminal, with all the processes of a real worker behind it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dummy_model import make_dummy_model
from support.fake_workers import wait_until

OPTIONS = ("--dummy-weight", "--num-pages", "200", "--device", "cpu", "--shell")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> list[str]:
    model = make_dummy_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)
    return [sys.executable, "-m", "minisgl", "--model", str(model), *OPTIONS]


class Terminal:
    """A worker whose standard streams are a terminal, as a person has it."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self._shown = b""
        pid, self._end = pty.fork()
        if pid == 0:
            os.execvpe(command[0], command, os.environ | {"TMPDIR": str(directory), "TERM": "dumb"})
        self.pid = pid

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Read until `text` is shown; return what came before it."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._shown:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._end], [], [], left)[0], f"no {text!r} in {self._shown!r}"
            self._shown += os.read(self._end, 4096)
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode(errors="replace")

    def interrupt(self) -> None:
        """Ctrl-C at the prompt, until there is another: Python may miss one just before it waits for a key."""
        for seconds in (5, 5, 60):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.wait_for("\n> ", seconds)
                return
        raise AssertionError(f"no prompt in {self._shown!r}")

    def status(self) -> int:
        """Wait for the end."""
        try:
            while os.read(self._end, 4096):
                pass
        except OSError:  # how Linux says that nobody has the other end any more
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(command: list[str], tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(command, tmp_path)
    yield terminal
    os.close(terminal._end)  # hangs up
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for("waiting for scheduler-0")
    terminal.wait_for("tiny is ready.")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/reset")
    terminal.type("/nonsense\n")
    terminal.wait_for("No such command: /nonsense")
    terminal.type("Tell me everything you know.\n")
    terminal.wait_for("everything you know.\r\n")
    time.sleep(0.2)  # some text
    terminal.type("\x03")
    answer = terminal.wait_for("[stopped]")
    assert "Traceback" not in answer
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.interrupt()  # at the prompt, where it only drops the line
    terminal.type("/reset\n")
    terminal.wait_for("The conversation is forgotten.")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.status() == 0


def test_a_conversation_from_a_pipe(command: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        command,
        input="Hello\n\nAgain\n/reset\nOnce more\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert ended.returncode == 0
    # A model that talks at random fills its context with the first answer.
    assert ended.stderr.strip().startswith("no answer: the prompt has ") and ended.stderr.count("\n") == 2
    _, greeting, talk = ended.stdout.partition("tiny is ready.")
    assert greeting
    first, forgotten, second = talk.partition("The conversation is forgotten.")
    assert forgotten
    assert len(first) > 100 and len(second) > 100 and first != second
    assert not list(tmp_path.iterdir())
