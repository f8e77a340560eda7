"""`minisgl-operator local` as its user starts it: a real worker with the small real model."""

from __future__ import annotations

import json
import os
import re
import shutil
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

from support.fake_workers import wait_until
from support.hub import Hub, running
from support.worker_process import free_port

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "examples" / "smollm2.yaml"
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
START_SECONDS = 120


class Local:
    """One run. All that it leaves behind would be in `home`: temporary files and caches."""

    def __init__(self, file: Path, models: Path, home: Path, **environment: str) -> None:
        self.port, self.home = free_port(), home
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary, self._log = home / "tmp", home / "log"
        self.temporary.mkdir()
        command = ["-f", str(file), "--models", str(models), "--port", str(self.port)]
        own = {"TMPDIR": str(self.temporary), "XDG_CACHE_HOME": str(home / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minisgl_operator", "local", *command],
                stdout=log,
                stderr=log,
                env=os.environ | own | environment,
            )

    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> Local:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return "Ready after" in self.log()

        wait_until(ready, START_SECONDS)
        return self

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ends(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def ask(self, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=60)


Start = Callable[..., Local]


@pytest.fixture
def start(tmp_path: Path, smollm2: Path) -> Iterator[Start]:
    started: list[Local] = []

    def start(file: Path = EXAMPLE, models: Path = smollm2.parent, **environment: str) -> Local:
        home = tmp_path / f"home-{len(started)}"
        home.mkdir()
        started.append(Local(file, models, home, **environment))
        return started[-1]

    yield start
    for local in started:
        if local.process.poll() is None:
            children = local.processes()
            local.process.kill()
            local.process.wait()
            assert not psutil.wait_procs(children, timeout=30)[1], "a process was left behind"


def assert_gone(local: Local, children: list[psutil.Process]) -> None:
    assert not [child for child in children if child.is_running()], "a process was left behind"
    assert not list(local.temporary.iterdir()), "a file was left behind"


def service(tmp_path: Path, *more: str, **replaced: str) -> Path:
    """The example with some of its text replaced, and other documents behind it."""
    text = EXAMPLE.read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "service.yaml"
    file.write_text("\n---\n".join([text, *more]))
    return file


def hub_at(endpoint: str) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}


def test_the_example_answers_and_its_curl_can_be_typed(start: Start) -> None:
    local = start().wait_ready()
    assert "the model in " in local.log()
    command = re.search(r"^  curl (.*\\\n.*)$", local.log(), re.MULTILINE)
    assert command is not None
    if shutil.which("curl"):
        answer = subprocess.run(["sh", "-c", f"curl -s {command[1]}"], check=True, capture_output=True).stdout
    else:
        answer = local.ask().content
    assert "Paris" in json.loads(answer)["choices"][0]["message"]["content"]
    children = local.processes()
    assert len(children) == 5
    local.process.send_signal(signal.SIGTERM)
    assert local.ends() == 0
    assert_gone(local, children)
    assert "Traceback" not in local.log()


def test_ctrl_c_finishes_a_stream(start: Start) -> None:
    local = start().wait_ready()
    children = local.processes()
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": 60, "ignore_eos": True, "stream": True}

    def stream() -> list[str]:
        response = httpx.post(f"{local.url}/v1/completions", json=body, timeout=60)
        return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]

    with ThreadPoolExecutor(1) as pool:
        running_stream = pool.submit(stream)
        wait_until(lambda: 'num_running_reqs{model_name="smollm2"} 1' in httpx.get(f"{local.url}/metrics").text)
        local.process.send_signal(signal.SIGINT)
        wait_until(lambda: "Stopping" in local.log())
        assert not running_stream.done(), "too quick to test anything"
        *chunks, done = running_stream.result()
    assert done == "[DONE]"
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
    assert local.ends() == 0
    assert_gone(local, children)


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    local = start().wait_ready()
    children = local.processes()
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{local.url}/v1/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
        local.process.send_signal(signal.SIGINT)
        wait_until(lambda: "draining" in local.log())
        local.process.send_signal(signal.SIGINT)
        assert local.ends(8) == 128 + signal.SIGINT
    assert_gone(local, children)


def test_ctrl_c_before_it_is_ready(start: Start) -> None:
    local = start()
    wait_until(lambda: "the model in " in local.log(), START_SECONDS)
    wait_until(lambda: len(local.processes()) >= 1)
    children = local.processes()
    local.process.send_signal(signal.SIGINT)
    assert local.ends(10) == 0
    assert "Traceback" not in local.log()
    assert_gone(local, children)


def test_a_kill_leaves_no_worker(start: Start) -> None:
    local = start()
    wait_until(lambda: len(local.processes()) == 5, START_SECONDS)
    children = local.processes()
    local.process.kill()
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_worker_that_dies_is_the_end(start: Start) -> None:
    local = start()
    wait_until(lambda: len(local.processes()) == 5, START_SECONDS)
    children = local.processes()
    children[-1].kill()
    assert local.ends(20) == 1
    assert_gone(local, children)


def test_a_worker_that_is_not_ready_in_time(start: Start, tmp_path: Path) -> None:
    """Its processes are suspended: they can neither become ready nor drain."""
    file = service(tmp_path, **{"  resources:": "  probes: {startupTimeoutSeconds: 10}\n  resources:"})
    local = start(file)
    # Not before: a child that is suspended as it begins would suspend the launcher, which waits for it.
    wait_until(lambda: "once it is loaded" in local.log(), START_SECONDS)
    children = local.processes()
    for child in children[1:]:
        child.suspend()
    assert local.ends(60) == 1
    assert "error: the worker is stopped: not ready after" in local.log()
    assert_gone(local, children)


def test_an_api_key(start: Start, tmp_path: Path) -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {api-key: sesame}"
    file = service(tmp_path, secret, **{"  resources:": "  auth: {apiKeySecretRef: {name: key}}\n  resources:"})
    local = start(file, MINISGL_API_KEY="of the environment, which is not used").wait_ready()
    assert "sesame" not in local.log()
    (key_file,) = local.temporary.glob("*/api-key/api-key")
    assert f'-H "Authorization: Bearer $(cat {key_file})"' in local.log()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert local.ask().status_code == 401
    answer = local.ask(Authorization=f"Bearer {key_file.read_text()}")
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    children = local.processes()
    local.process.send_signal(signal.SIGINT)
    assert local.ends() == 0
    assert_gone(local, children)


def test_a_model_that_is_not_there_is_downloaded(start: Start, smollm2: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with running(Hub("HuggingFaceTB/SmolLM2-135M-Instruct", smollm2)) as endpoint:
        offline = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "127.0.0.1",
            "HF_HUB_OFFLINE": "0",
        }
        local = start(models=models, **offline).wait_ready()
    assert re.search(r"^  100%  0\.54 of 0\.54 GB  [\d.]+ MB/s$", local.log(), re.MULTILINE), local.log()
    assert (models / "HuggingFaceTB" / "SmolLM2-135M-Instruct" / "main" / "config.json").is_file()
    assert "Paris" in local.ask().json()["choices"][0]["message"]["content"]
    local.process.send_signal(signal.SIGINT)
    assert local.ends() == 0


def test_ctrl_c_ends_a_download(start: Start, smollm2: Path, tmp_path: Path) -> None:
    hub = Hub("HuggingFaceTB/SmolLM2-135M-Instruct", smollm2, bytes_per_second=1e6)
    with running(hub) as endpoint:
        local = start(models=tmp_path, **hub_at(endpoint))
        wait_until(lambda: " MB/s" in local.log(), START_SECONDS)
        children = local.processes()
        local.process.send_signal(signal.SIGINT)
        assert local.ends(5) == 0
    assert_gone(local, children)
    assert local.log().endswith("stopped; what is there is kept\n")


class TestRefusals:
    """One line on standard error, status 2, and nothing is left."""

    @staticmethod
    def refusal(local: Local) -> str:
        assert local.ends(60) == 2, local.log()
        errors = [line for line in local.log().splitlines() if "error: " in line]
        assert len(errors) == 1 and "Traceback" not in local.log(), local.log()
        assert not list(local.temporary.iterdir())
        return errors[0]

    def test_no_such_file(self, start: Start, tmp_path: Path) -> None:
        assert "no such file" in self.refusal(start(tmp_path / "x.yaml")).lower()

    def test_a_field_that_is_not_there(self, start: Start, tmp_path: Path) -> None:
        file = service(tmp_path, engine="enginee")
        assert self.refusal(start(file)).startswith(f"minisgl-operator: error: {file}: unknown field")

    def test_a_model_that_is_none(self, start: Start, tmp_path: Path) -> None:
        models = tmp_path / "models"
        (models / "SmolLM2-135M-Instruct").mkdir(parents=True)
        (models / "SmolLM2-135M-Instruct" / "config.json").write_text("{}")
        assert self.refusal(start(models=models)).startswith("minisgl: error: ")

    def test_a_claim_that_is_not_there(self, start: Start, tmp_path: Path) -> None:
        pvc = {"huggingFace:\n      repo: HuggingFaceTB/SmolLM2-135M-Instruct": "pvc: {claimName: weights}"}
        message = self.refusal(start(service(tmp_path, **pvc), tmp_path))
        assert "spec.model.pvc: a claim is a directory here" in message

    def test_a_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            command = [sys.executable, "-m", "minisgl_operator", "local", "-f", str(EXAMPLE), "--port", port]
            ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert ended.stderr == (
            f"minisgl-operator: error: cannot listen on 127.0.0.1 port {port}: address already in use; "
            "see --host and --port\n"
        )
        assert ended.stdout == ""

    def test_a_hub_that_is_not_there(self, start: Start, tmp_path: Path) -> None:
        local = start(
            models=tmp_path / "models", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}", no_proxy="127.0.0.1"
        )
        assert "; try again" in self.refusal(local)


def test_a_suspended_service_starts_nothing(start: Start, tmp_path: Path) -> None:
    began = time.monotonic()
    local = start(service(tmp_path, **{"  resources:": "  suspend: true\n  resources:"}))
    assert local.ends(30) == 0
    assert local.log() == "smollm2: spec.suspend is true: nothing is started\n"
    assert time.monotonic() - began < 30
