"""The API server's process told to end, over scripted workers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from minisgl.core.config import Addresses
from minisgl.server.config import ApiConfig, ServerConfig
from minisgl.utils.child import ChildHeader, start_child
from support.fake_workers import PROCESSES, FakeWorkers, one_token, wait_until


@contextmanager
def api_process(
    *, ready: bool = True, grace: float = 0.0, timeout: float = 20.0
) -> Iterator[tuple[subprocess.Popen[bytes], FakeWorkers, httpx.Client]]:
    """The real process, which serves."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        addresses = Addresses(directory=directory)
        config = ApiConfig(
            server=ServerConfig(served_model_name="tiny", drain_grace=grace, drain_timeout=timeout),
            addresses=addresses,
            listen_fd=listener.fileno(),
            num_tokenizers=2,
            processes=PROCESSES,
        )
        process = start_child(
            "minisgl.server.api_process", ChildHeader(name="api"), config, pass_fds=(listener.fileno(),)
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        try:
            with FakeWorkers(addresses, ready=ready) as workers, httpx.Client(base_url=url, timeout=30) as client:
                status = 200 if ready else 503
                wait_until(lambda: client.get("/ready").status_code == status, 30)
                yield process, workers, client
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def complete(client: httpx.Client, prompt: str, *, stream: bool = False) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "stream": stream})


def test_streams_finish_new_requests_are_refused_and_it_leaves_with_0() -> None:
    with api_process() as (process, workers, client), ThreadPoolExecutor() as pool:
        streams = [pool.submit(complete, client, "a|<hang>", stream=True) for _ in range(3)]
        wait_until(lambda: len(workers.requests) == 3)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in client.get("/ready").text)
        wait_until(lambda: complete(client, "x").status_code == 503)
        refused = complete(client, "x")
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["connection"] == "close"
        assert client.get("/live").status_code == 200
        assert process.poll() is None
        for request in workers.requests[:3]:
            workers.send(one_token(request.uid, "b", "stop"))
        for stream in streams:
            lines = stream.result().text.split("\n\n")
            assert lines[-2] == "data: [DONE]"
            texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-2]]
            assert "".join(texts) == "ab"
        assert process.wait(10) == 0


def test_in_the_grace_time_it_is_not_ready_but_serves() -> None:
    with api_process(grace=600) as (process, _, client):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status_code == 503)
        assert complete(client, "a|b").json()["choices"][0]["text"] == "ab"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 0


def test_without_grace_an_idle_server_leaves_at_once() -> None:
    with api_process(grace=600) as (process, _, client):
        assert complete(client, "a").status_code == 200
        process.send_signal(signal.SIGUSR1)
        assert process.wait(5) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/live")


def test_what_takes_too_long_is_given_up_and_told_so() -> None:
    with api_process(timeout=0.2) as (process, workers, client), ThreadPoolExecutor() as pool:
        whole = pool.submit(complete, client, "a|<hang>")
        stream = pool.submit(complete, client, "a|<hang>", stream=True)
        wait_until(lambda: len(workers.requests) == 2)
        process.send_signal(signal.SIGTERM)
        assert whole.result().status_code == 503
        last = stream.result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert process.wait(10) == 0
        wait_until(lambda: set(workers.aborted) == {request.uid for request in workers.requests})


def test_while_loading_it_leaves_at_once() -> None:
    with api_process(ready=False, grace=600) as (process, _, _client):
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
