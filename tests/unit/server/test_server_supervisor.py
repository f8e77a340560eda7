"""A dead process is a dead worker, and no end leaves anything behind: with real processes that do nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minisgl.utils.child import ChildHeader, configure, spawn
from support.fake_workers import wait_until
from support.stub_child import StubConfig

TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def test_a_child_that_is_never_told_what_it_is_leaves_with_its_parent() -> None:
    child = spawn("support.stub_child")
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(10) == 1


def test_a_spawned_child_hears_of_variables_that_were_set_since(tmp_path: Path) -> None:
    child = spawn("support.stub_child")
    config = StubConfig(does="tell", pid_file=str(tmp_path / "told"))
    configure(child, ChildHeader(name="stub", environment={"TOLD": "later"}), config)
    assert child.wait(10) == 0
    assert (tmp_path / "told").read_text() == "later"


def test_sigusr2_prints_what_a_child_is_doing_and_leaves_it_running(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "support.stub_child"], stdin=subprocess.PIPE, stderr=stderr
        )  # as `spawn` does, but for where it writes
    configure(child, ChildHeader(name="stub"), StubConfig(does="drain", pid_file=str(tmp_path / "pid")))
    wait_until((tmp_path / "pid").exists)
    child.send_signal(signal.SIGUSR2)
    wait_until(lambda: "in main" in (tmp_path / "stderr").read_text())
    assert "stub_child.py" in (tmp_path / "stderr").read_text()
    child.terminate()
    assert child.wait(10) == 0


class Launch:
    """A running `support.stub_launcher`."""

    def __init__(self, directory: Path, *behaviours: str, drain_seconds: float) -> None:
        self.directory = directory
        self.count = len(behaviours)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.stub_launcher", str(directory), str(drain_seconds), *behaviours],
            stderr=subprocess.PIPE,
            text=True,
        )

    def up(self) -> Launch:
        """Wait until every child runs."""
        wait_until(lambda: len(self.pids()) == self.count)
        return self

    def pids(self) -> list[int]:
        files = [self.directory / str(index) for index in range(self.count)]
        return [int(file.read_text()) for file in files if file.exists() and file.read_text()]

    def end(self, expected: int) -> str:
        """Wait for the end; return what was written to standard error."""
        _, written = self.process.communicate(timeout=20)
        assert self.process.returncode == expected, written
        assert not any(map(alive, self.pids())), "a child was left behind"
        assert not Path((self.directory / "private").read_text()).exists()
        return written


Launches = Callable[..., Launch]


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    made: list[Launch] = []

    def launch(*behaviours: str, drain_seconds: float = 20) -> Launch:
        made.append(Launch(tmp_path, *behaviours, drain_seconds=drain_seconds))
        return made[-1]

    yield launch
    for launched in made:
        launched.process.kill()
        launched.process.communicate()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_killed_child_ends_the_worker_within_a_second(launches: Launches) -> None:
    launch = launches("drain", "serve", "serve").up()
    os.kill(launch.pids()[1], signal.SIGKILL)
    began = time.monotonic()
    assert "stub-1 was killed by SIGKILL: stopping the worker" in launch.end(1)
    assert time.monotonic() - began < 1


def test_a_child_that_does_not_heed_is_killed(launches: Launches) -> None:
    launch = launches("stubborn", "serve", "stubborn").up()
    os.kill(launch.pids()[1], signal.SIGKILL)
    launch.end(1)


@pytest.mark.parametrize("status", [0, 1, 7])
def test_a_child_that_leaves_ends_the_worker_with_1(launches: Launches, status: int) -> None:
    launch = launches("drain", f"exit:{status}")
    assert f"stub-1 exited with status {status}: stopping the worker" in launch.end(1)


def test_a_childs_own_words_are_enough_for_a_user_error(launches: Launches) -> None:
    written = launches("serve", "user-error").end(2)
    assert written == "minisgl: error: the checkpoint is cut short\n"


def test_a_crash_shows_its_traceback(launches: Launches) -> None:
    written = launches("drain", "crash").end(1)
    assert "RuntimeError: boom" in written and "stub-1 exited with status 1" in written


@pytest.mark.parametrize(("number", "handed_on"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGUSR1")])
def test_the_first_signal_drains(launches: Launches, number: int, handed_on: str) -> None:
    launch = launches("drain", "serve", "serve").up()
    launch.process.send_signal(number)
    assert f"stub-0 drained by {handed_on}" in launch.end(0)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_stops_at_once(launches: Launches, first: int, second: int) -> None:
    launch = launches("stubborn", "serve").up()
    launch.process.send_signal(first)
    assert "draining" in (launch.process.stderr or sys.stdin).readline()
    launch.process.send_signal(second)
    began = time.monotonic()
    assert "stopping at once" in launch.end(128 + second)
    assert time.monotonic() - began < 1.5


def test_a_signal_before_the_child_can_handle_it_ends_well(launches: Launches) -> None:
    launch = launches("serve", "serve").up()  # SIGTERM's own effect: it has no handler
    launch.process.send_signal(signal.SIGTERM)
    launch.end(0)


def test_a_drain_that_takes_too_long_is_given_up(launches: Launches) -> None:
    launch = launches("stubborn", "serve", drain_seconds=0.2).up()
    launch.process.send_signal(signal.SIGTERM)
    assert "did not drain" in launch.end(1)


def test_a_death_while_draining_is_a_failure(launches: Launches) -> None:
    launch = launches("stubborn", "serve").up()
    launch.process.send_signal(signal.SIGTERM)
    assert "draining" in (launch.process.stderr or sys.stdin).readline()
    os.kill(launch.pids()[1], signal.SIGKILL)
    assert "stub-1 was killed by SIGKILL" in launch.end(1)


def test_children_leave_when_the_launcher_is_killed(launches: Launches) -> None:
    launch = launches("drain", "serve", "stubborn").up()
    pids = launch.pids()
    launch.process.kill()
    launch.process.wait()
    wait_until(lambda: not any(map(alive, pids)))
    wait_until(lambda: not Path((launch.directory / "private").read_text()).exists())
