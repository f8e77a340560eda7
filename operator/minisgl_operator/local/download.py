"""Brings the model here, and says how far it is."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass

from minisgl_operator.local.child import Child, Ended, Events, Line, Order
from minisgl_operator.local.errors import LocalError
from minisgl_operator.local.pod import Process

ERROR = "minisgl.download: error: "
"""Begins the line that says why a download failed."""
LINE_SECONDS = 10.0
LINES = 10
"""Where there is no terminal, a line comes after so much time, or with one more of so many parts of the whole."""

HINTS = {
    11: "a token comes by HF_TOKEN, or by spec.model.huggingFace.tokenSecretRef and its Secret in the file",
    13: "try again (what is there is kept), or put the model where --models says",
}
"""What to do about the exit statuses that need more words: not authorised, hub not reachable."""


@dataclass
class Progress:
    """Decides what is shown of a download's reports. `seconds` are of any clock that goes on."""

    terminal: bool
    _first: tuple[float, int] | None = None
    """Seconds and bytes of the first report: what was there before was not loaded now."""
    _shown: tuple[float, int] = (0.0, -1)
    """Seconds and bytes of the last line."""

    def line(self, report: str, seconds: float) -> str | None:
        """What to print for one report, if anything. On a terminal it takes the place of the last line."""
        try:
            numbers = json.loads(report)
            done, total = int(numbers["bytes_done"]), int(numbers["bytes_total"])
        except (ValueError, TypeError, KeyError):
            return None
        if self._first is None:
            self._first = (seconds, done)
        since, before = self._shown
        full = max(total, 1)
        late = seconds - since >= LINE_SECONDS or done * LINES // full > before * LINES // full
        if done == before or not (self.terminal or late):
            return None
        self._shown = (seconds, done)
        share = done / total if total else 1.0
        rate = (done - self._first[1]) / max(seconds - self._first[0], 0.001)
        return f"{share:4.0%}  {done / 1e9:.2f} of {total / 1e9:.2f} GB  {rate / 1e6:.1f} MB/s"


def run_download(process: Process, events: Events) -> bool:
    """False when the user has ended it. Raises `LocalError` when it fails."""
    terminal = sys.stdout.isatty()
    progress = Progress(terminal)
    ordered = shown = False
    with Child(process, events, piped=True) as child:
        while True:
            match events.get():
                case Line(text):
                    line = progress.line(text, time.monotonic())
                    if line is not None:
                        print(
                            f"\r\x1b[K  {line}" if terminal else f"  {line}",
                            end="" if terminal else "\n",
                            flush=True,
                        )
                        shown = terminal
                case Order():
                    ordered = True
                    child.send(signal.SIGTERM)
                case Ended(status):
                    break
                case _:
                    pass
        if shown:
            print()
        if status and not ordered:
            raise LocalError(_failure(status, child.errors()))
    return not ordered


def _failure(status: int, errors: list[str]) -> str:
    said = [line.removeprefix(ERROR) for line in errors if line.startswith(ERROR)]
    text = said[-1] if said else f"the download ended with status {status}: {errors[-1] if errors else 'no word'}"
    return f"{text}; {HINTS[status]}" if status in HINTS else text
