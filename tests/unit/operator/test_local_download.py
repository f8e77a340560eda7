"""What is shown of a download, and what its end means."""

from __future__ import annotations

import json
import os
import queue
import sys
from pathlib import Path

import pytest

from minisgl.download.failure import Status
from minisgl_operator.local import LocalError
from minisgl_operator.local.child import Events, Order
from minisgl_operator.local.download import HINTS, Progress, run_download
from minisgl_operator.local.pod import Process

GB = 1_000_000_000


def report(done: int, total: int = 10 * GB) -> str:
    return json.dumps({"bytes_done": done, "bytes_total": total})


class TestProgress:
    def test_on_a_terminal_each_report_that_says_something_new(self) -> None:
        progress = Progress(terminal=True)
        assert progress.line(report(1 * GB), 101) == " 10%  1.00 of 10.00 GB  0.0 MB/s"
        assert progress.line(report(2 * GB), 102) == " 20%  2.00 of 10.00 GB  1000.0 MB/s", "only what came now"
        assert progress.line(report(2 * GB), 103) is None

    def test_elsewhere_a_line_each_ten_percent(self) -> None:
        progress = Progress(terminal=False)
        lines = [progress.line(report(percent * GB // 10), 0.01 * percent) for percent in range(101)]
        assert [line.split()[0] for line in lines if line] == [f"{percent}%" for percent in range(0, 101, 10)]

    def test_elsewhere_a_line_each_ten_seconds(self) -> None:
        progress = Progress(terminal=False)
        lines = {second: progress.line(report(second * 1000), second) for second in range(1, 35)}
        assert [second for second, line in lines.items() if line] == [1, 11, 21, 31]

    def test_the_end_is_always_said(self) -> None:
        progress = Progress(terminal=False)
        assert progress.line(report(95 * GB // 10), 1)
        assert progress.line(report(10 * GB), 2) is not None

    def test_an_empty_model(self) -> None:
        assert Progress(terminal=False).line(report(0, 0), 0) == "100%  0.00 of 0.00 GB  0.0 MB/s"

    @pytest.mark.parametrize("text", ["", "[]", "3", '{"bytes_done": 1}', '{"bytes_done": 1, "bytes_total": {}}'])
    def test_what_is_no_report_is_left_out(self, text: str) -> None:
        assert Progress(terminal=True).line(text, 0) is None


def python(code: str) -> Process:
    return Process([sys.executable, "-c", code], dict(os.environ))


def events() -> Events:
    return queue.SimpleQueue()


def test_a_download_that_ends_well(capfd: pytest.CaptureFixture[str]) -> None:
    code = f"print('{report(0)}'); print('{report(10 * GB)}'); import sys; print('noise', file=sys.stderr)"
    assert run_download(python(code), events())
    said = capfd.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["0%", "100%"]
    assert said.err == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.USAGE, "it says"),
        (Status.NOT_FOUND, "it says"),
        (Status.NOT_AUTHORISED, "it says; a token comes by HF_TOKEN"),
        (Status.NO_SPACE, "it says"),
        (Status.UNREACHABLE, "it says; try again"),
    ],
)
def test_a_failure_is_one_line_of_its_own_words(status: Status, words: str) -> None:
    code = f"import sys; print('x\\nminisgl.download: error: it says', file=sys.stderr); sys.exit({int(status)})"
    with pytest.raises(LocalError) as failed:
        run_download(python(code), events())
    assert str(failed.value).startswith(words)
    assert "\n" not in str(failed.value)


def test_a_defect_shows_its_last_line() -> None:
    with pytest.raises(LocalError, match="ended with status 1: ZeroDivisionError"):
        run_download(python("1 / 0"), events())


def test_an_order_ends_it(tmp_path: Path) -> None:
    ordered = events()
    ordered.put(Order(2))
    code = f"import time, pathlib; time.sleep(60); pathlib.Path('{tmp_path}/late').touch()"
    assert not run_download(python(code), ordered)
    assert not (tmp_path / "late").exists()


def test_hints_are_for_statuses_that_there_are() -> None:
    assert set(HINTS) <= set(Status)
