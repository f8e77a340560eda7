"""Asks the process that judges grammars, started with the first that comes."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import threading
from collections import OrderedDict

from minisgl.grammar.frames import read_frame, write_frame

MAX_CHARACTERS = 1 << 20
"""Of a grammar: what a request with a larger one may ask for is refused unread."""
REMEMBERED = 256
"""Verdicts that are kept."""


class GrammarChecker:
    """Says whether a model's answers can follow a grammar. `check` is for one thread, `known` for any."""

    def __init__(self, directory: str) -> None:
        """`directory`: the model's."""
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        """By the hash of the grammar, the latest asked for last."""

    def known(self, grammar: str) -> str | None:
        """The verdict on a grammar that was checked lately, as `check` gives it; None for any other."""
        if len(grammar) > MAX_CHARACTERS:
            return f"it has more than {MAX_CHARACTERS} characters"
        key = _key(grammar)
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
            return self._verdicts.get(key)

    def check(self, grammar: str) -> str:
        """Why no answer can follow `grammar`, in one line; empty if one can. Takes about a second at most.

        Raises `OSError` when the judging process is gone; the next call starts another.
        """
        verdict = self.known(grammar)
        if verdict is None:
            verdict = self._ask(grammar)
            with self._lock:
                self._verdicts[_key(grammar)] = verdict
                if len(self._verdicts) > REMEMBERED:
                    self._verdicts.popitem(last=False)
        return verdict

    def _ask(self, grammar: str) -> str:
        if self._process is None:
            command = [sys.executable, "-m", "minisgl.grammar.check_process", self._directory]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        verdict = None
        with contextlib.suppress(BrokenPipeError):
            write_frame(process.stdin, grammar)
            verdict = read_frame(process.stdout)
        if verdict is None:
            self.close()
            raise BrokenPipeError("the process that judges grammars has ended")
        return verdict

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait()


def _key(grammar: str) -> bytes:
    return hashlib.blake2b(grammar.encode(), digest_size=16).digest()
