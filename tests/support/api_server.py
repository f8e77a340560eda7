"""The API server on a real port, in a thread of the test, over `FakeWorkers`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import uvloop

from minisgl.core.config import Addresses
from minisgl.server.api_process import http_server, start_tracing
from minisgl.server.app import create_app
from minisgl.server.config import ServerConfig
from minisgl.server.frontend import Frontend
from minisgl.server.metrics import Metrics
from minisgl.server.readiness import Readiness
from minisgl.server.tls import Tls
from support.fake_workers import PROCESSES, FakeWorkers, wait_until

MODEL = "tiny"


class ApiServer:
    """What a test sees of a running server."""

    def __init__(self, port: int, workers: FakeWorkers, frontend: Frontend, tls: Tls | None) -> None:
        self.port = port
        self.workers = workers
        self.frontend = frontend
        scheme = "http" if tls is None else "https"
        verify = True if tls is None else _client(tls)
        self.http = httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", timeout=20, verify=verify)
        self.openai = openai.OpenAI(
            base_url=f"{scheme}://127.0.0.1:{port}/v1", api_key="unused", max_retries=0, timeout=20
        )

    def chat(self, content: Any, **fields: Any) -> httpx.Response:
        """One chat completion, as bare HTTP."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        """One completion, as bare HTTP."""
        return self.http.post("/v1/completions", json={"model": MODEL, "prompt": prompt} | fields)


def _client(tls: Tls) -> ssl.SSLContext:
    """Believes what the test's authority signed, and shows a certificate of it if asked."""
    directory = Path(tls.certfile).parent
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "client.pem", directory / "client.key")
    return context


@contextlib.contextmanager
def api_server(*, ready: bool = True, **options: Any) -> Iterator[ApiServer]:
    """Run a server with `options` of `ServerConfig` for the time of the context."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        addresses = Addresses(directory=directory)
        stop = threading.Event()
        started: list[Frontend] = []
        arguments = (ServerConfig(served_model_name=MODEL, **options), addresses, listener, started, stop)
        thread = threading.Thread(target=lambda: uvloop.run(_serve(*arguments)))
        with FakeWorkers(addresses, ready=ready) as workers:
            thread.start()
            wait_until(lambda: bool(started))
            server = ApiServer(listener.getsockname()[1], workers, started[0], options.get("tls"))
            if ready:
                wait_until(lambda: server.http.get("/ready").status_code == 200)
            try:
                yield server
            finally:
                server.http.close()
                server.openai.close()
                stop.set()
                thread.join()


async def _serve(
    config: ServerConfig,
    addresses: Addresses,
    listener: socket.socket,
    started: list[Frontend],
    stop: threading.Event,
) -> None:
    metrics = Metrics(config.served_model_name)
    frontend = Frontend(
        addresses,
        num_tokenizers=2,
        max_queued_requests=config.max_queued_requests,
        readiness=Readiness(PROCESSES),
        metrics=metrics,
    )
    tracing = start_tracing(config)
    observers = () if tracing is None else (tracing.observe,)
    server = http_server(create_app(config, frontend, metrics, observers), config.tls)
    receiving = asyncio.create_task(frontend.receive())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    started.append(frontend)
    await asyncio.to_thread(stop.wait)
    server.should_exit = True
    await serving
    receiving.cancel()
    frontend.destroy()
    if tracing is not None:
        tracing.end()
