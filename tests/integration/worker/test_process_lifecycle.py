"""How a real worker starts and ends: whatever happens, it says so and leaves no process, socket or file."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from support.dummy_model import make_dummy_model
from support.fake_workers import wait_until
from support.worker_process import WorkerProcess

MODULES = (
    "scheduler.process-0",
    "server.api_process-0",
    "tokenizer.tokenize_process-0",
    "tokenizer.detokenize_process-0",
)
OPTIONS = ("--dummy-weight", "--num-pages", "200", "--device", "cpu")
Start = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return make_dummy_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where a worker under test puts its temporary files."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture
def start(model: Path, temporary: Path) -> Iterator[Start]:
    """Start workers, which are killed at the end of the test if they still run."""
    started: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        started.append(WorkerProcess(model, *OPTIONS, *options, env={"TMPDIR": str(temporary)}))
        return started[-1]

    yield start
    for worker in started:
        worker.__exit__(None, None, None)


def all_children(worker: WorkerProcess) -> list[psutil.Process]:
    """Wait until every process has been started."""
    wait_until(lambda: set(worker.children()) == set(MODULES))
    return list(worker.children().values())


def assert_gone(children: list[psutil.Process], temporary: Path) -> None:
    assert not [child for child in children if child.is_running()], "a process was left behind"
    assert not list(temporary.iterdir()), "a file was left behind"


def stream(worker: WorkerProcess, tokens: int) -> list[str]:
    """The data of one stream of exactly `tokens` tokens."""
    body = {"model": "tiny", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    response = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("module", MODULES)
def test_a_killed_process_ends_the_worker(start: Start, temporary: Path, module: str) -> None:
    worker = start().wait_ready()
    children = worker.children()
    os.kill(children[module].pid, signal.SIGKILL)
    began = time.monotonic()
    assert worker.process.wait(3) == 1
    assert time.monotonic() - began < 3
    assert "was killed by SIGKILL: stopping the worker" in worker.log()
    assert_gone(list(children.values()), temporary)


def test_a_killed_launcher_leaves_nothing(start: Start, temporary: Path) -> None:
    worker = start().wait_ready()
    children = list(worker.children().values())
    assert len(children) == len(MODULES)
    worker.process.kill()
    worker.process.wait()
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert (len(gone), alive) == (len(MODULES), [])
    wait_until(lambda: not list(temporary.iterdir()))


def test_a_launcher_killed_while_loading_leaves_nothing(start: Start, temporary: Path) -> None:
    worker = start()
    children = all_children(worker)
    worker.process.kill()
    worker.process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]
    wait_until(lambda: not list(temporary.iterdir()))


def test_sigterm_lets_streams_finish(start: Start, temporary: Path) -> None:
    worker = start("--drain-grace", "0").wait_ready()
    children = list(worker.children().values())
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, worker, 300) for _ in range(8)]
        wait_until(lambda: worker.metrics()["sglang:num_running_reqs"] == 8)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{worker.url}/ready").status_code == 503)
        assert not any(future.done() for future in streams), "too quick to test anything"
        late = httpx.post(f"{worker.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        for future in streams:
            *chunks, done = future.result()
            assert done == "[DONE]"
            assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
    assert worker.process.wait(10) == 0
    assert_gone(children, temporary)
    assert worker.log().count("300 out") == 8, "one line a request"


def test_a_second_signal_ends_it_at_once(start: Start, temporary: Path) -> None:
    worker = start("--drain-grace", "600").wait_ready()
    children = list(worker.children().values())
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: httpx.get(f"{worker.url}/ready").status_code == 503)
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(2) == 128 + signal.SIGINT
    assert_gone(children, temporary)


def test_sigint_of_an_idle_worker_does_not_wait_for_the_grace_time(start: Start, temporary: Path) -> None:
    worker = start("--drain-grace", "600").wait_ready()
    children = list(worker.children().values())
    assert worker.stop(signal.SIGINT, timeout=5) == 0
    assert_gone(children, temporary)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_it_at_once_and_well(
    start: Start, temporary: Path, number: signal.Signals
) -> None:
    worker = start("--drain-grace", "600")
    children = all_children(worker)
    assert worker.stop(number, timeout=3) == 0
    assert "Traceback" not in worker.log()
    assert_gone(children, temporary)


def test_sockets_are_private_and_the_port_is_said(start: Start, temporary: Path) -> None:
    worker = start("--port", "0")
    wait_until(lambda: "http://" in worker.log(), 30)
    url = worker.log().partition("http://")[2].split()[0]
    (directory,) = temporary.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    wait_until(lambda: _status(f"http://{url}/live") == 200, 30)
    assert worker.stop() == 0
    assert not list(temporary.iterdir())


def test_a_long_tmpdir_is_no_obstacle(model: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with WorkerProcess(model, *OPTIONS, env={"TMPDIR": str(deep)}) as worker:
        worker.wait_ready()
        assert not list(deep.iterdir())
        assert len(stream(worker, 2)) >= 2
        assert worker.stop(signal.SIGINT) == 0


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


class TestRefusals:
    """One line on standard error, status 2, and nothing started."""

    @staticmethod
    def refusal(*arguments: str, directory: Path) -> str:
        command = [sys.executable, "-m", "minisgl", *arguments]
        environ = os.environ | {"TMPDIR": str(directory)}
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environ)
        assert ended.returncode == 2, ended.stderr
        errors = [line for line in ended.stderr.splitlines() if line.startswith("minisgl: error: ")]
        others = [line for line in ended.stderr.splitlines() if " I launcher: serving " in line]
        assert len(errors) == 1 and len(errors) + len(others) == len(ended.stderr.splitlines()), ended.stderr
        assert not list(directory.iterdir())
        return errors[0].removeprefix("minisgl: error: ")

    def test_port_in_use(self, model: Path, temporary: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            message = self.refusal("--model", str(model), *OPTIONS, "--port", str(port), directory=temporary)
        assert message.startswith(f"cannot listen on 127.0.0.1 port {port}: address already in use")

    def test_no_such_host(self, model: Path, temporary: Path) -> None:
        message = self.refusal("--model", str(model), *OPTIONS, "--host", "256.1.1.1", directory=temporary)
        assert message.startswith("cannot listen on 256.1.1.1 port 1919: ")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ((), "no weights"),
            (("--dummy-weight", "--tp", "3"), "3 ranks"),
            (("--dummy-weight", "--max-seq-len", "513"), "at most 512 tokens"),
            (("--dummy-weight", "--port", "70000"), "--port"),
            (("--num-pages", "9", "--memory-ratio", "0.5"), "--num-pages and --memory-ratio"),
        ],
    )
    def test_what_the_model_cannot_do(
        self, model: Path, temporary: Path, options: tuple[str, ...], words: str
    ) -> None:
        assert words in self.refusal("--model", str(model), "--device", "cpu", *options, directory=temporary)

    def test_no_such_model(self, temporary: Path) -> None:
        assert "/no/such/model" in self.refusal("--model", "/no/such/model", directory=temporary)

    def test_what_only_a_child_can_find(self, model: Path, tmp_path: Path, temporary: Path) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        for file in model.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "tokenizer.json").write_text("{")
        message = self.refusal("--model", str(broken), *OPTIONS, "--port", "0", directory=temporary)
        assert "tokenizer.json" in message
