"""The API server's process: ``python -m minisgl.server.api_process``, started by the launcher.

SIGTERM drains it, and SIGUSR1 drains it without the grace time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from fastapi import FastAPI

from minisgl.server.app import create_app
from minisgl.server.config import ApiConfig, ServerConfig
from minisgl.server.drain import Drain
from minisgl.server.frontend import Frontend
from minisgl.server.http_protocol import Http11Protocol
from minisgl.server.metrics import Metrics
from minisgl.server.readiness import Readiness
from minisgl.server.tls import Tls
from minisgl.utils.child import EXIT_EXPLAINED, run_child

if TYPE_CHECKING:
    from minisgl.server.tracing import Tracing

KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time of common load balancers, which else reuse a connection as it closes."""
FLUSH_SECONDS = 5
"""For the last bytes of answers to slow clients when the server stops."""


logger = logging.getLogger("minisgl.server")


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: when to stop is `Drain`'s decision."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: FastAPI, tls: Tls | None = None) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=Http11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FLUSH_SECONDS,
            ssl_certfile=None if tls is None else tls.certfile,
            ssl_keyfile=None if tls is None else tls.keyfile,
            ssl_keyfile_password=None if tls is None else tls.password,
            ssl_ca_certs=None if tls is None else tls.ca_certs,
            ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.ca_certs is None else ssl.CERT_REQUIRED,
        )
    )


def start_tracing(config: ServerConfig) -> Tracing | None:
    """None: nothing is traced, and nothing imported for it."""
    if config.otlp_traces_endpoint is None:
        return None
    from minisgl.server.tracing import Tracing  # noqa: PLC0415  an extra, which need not be installed

    return Tracing(config.otlp_traces_endpoint, config.served_model_name)


async def watch(readiness: Readiness) -> None:
    """End this process, and with it the worker, when a rank hangs."""
    while (hanging := readiness.hanging()) is None:
        await asyncio.sleep(1)
    logger.error("%s: stopping the worker", hanging)
    os._exit(EXIT_EXPLAINED)  # a clean end would wait for answers that cannot come


async def serve(config: ApiConfig) -> None:
    """Serve until drained. Raises what the frontend or the server raises."""
    metrics = Metrics(config.server.served_model_name)
    frontend = Frontend(
        config.addresses,
        num_tokenizers=config.num_tokenizers,
        max_queued_requests=config.server.max_queued_requests,
        readiness=Readiness(config.processes),
        metrics=metrics,
    )
    drain = Drain(frontend, grace=config.server.drain_grace, timeout=config.server.drain_timeout)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, drain.begin)
    loop.add_signal_handler(signal.SIGUSR1, lambda: drain.begin(hurry=True))
    tracing = start_tracing(config.server)
    observers = () if tracing is None else (tracing.observe,)
    server = http_server(create_app(config.server, frontend, metrics, observers), config.server.tls)
    listener = socket.socket(fileno=config.listen_fd)
    receiving = asyncio.create_task(frontend.receive())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    draining = asyncio.create_task(drain.finished())
    watching = asyncio.create_task(watch(frontend.readiness))
    await asyncio.wait({receiving, serving, draining}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({receiving, serving}, return_when=asyncio.FIRST_COMPLETED)
    for task in (receiving, serving, draining):
        if task.done():
            task.result()
    receiving.cancel()
    watching.cancel()
    frontend.destroy()
    if tracing is not None:
        tracing.end()


def main(_name: str, config: ApiConfig) -> None:
    # uvicorn warns of every malformed request: a log that strangers can fill
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # A connection is a descriptor, and the usual soft limit is fewer than the requests that may be in flight.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))


if __name__ == "__main__":
    run_child(ApiConfig, main)
