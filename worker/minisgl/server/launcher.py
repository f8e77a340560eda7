"""Brings a worker up: the listening socket, the private directory, and every process at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess

import msgspec

from minisgl.core.config import Addresses, DetokenizerConfig, SchedulerProcessConfig, TokenizerConfig
from minisgl.server.config import ApiConfig, ServerConfig, ShellConfig, WorkerConfig
from minisgl.server.supervisor import ORDERS, Supervisor
from minisgl.utils.child import ChildHeader
from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import VARIABLES
from minisgl.utils.log import configure_logging
from minisgl.utils.sockets import private_directory

logger = logging.getLogger("minisgl.launcher")

SCHEDULER = "minisgl.scheduler.process"
"""The module of the processes that take longest to start."""
_FLUSH_SECONDS = 10.0
"""What a drain may take beyond the times that the user gave: the last bytes to slow clients, and some patience."""


def launch(config: WorkerConfig, first: subprocess.Popen[bytes]) -> int:
    """Serve until told to end, or until a process dies; return the exit status. Raises `UserError`.

    `first`: the process of rank 0, spawned ahead, since it takes longest.
    """
    configure_logging("launcher", config.log_level, config.log_format)
    # A signal from here on waits for the supervisor, so that none ends the launch between two of its steps.
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    server = config.server
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(server))
        host, port = listener.getsockname()[:2]
        directory = stack.enter_context(private_directory())
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        header = ChildHeader(
            name="",
            log_level=config.log_level,
            log_format=config.log_format,
            directory=directory,
            environment=environment,
        )
        drain_seconds = server.drain_grace + server.drain_timeout + _FLUSH_SECONDS
        supervisor = stack.enter_context(Supervisor(header, drain_seconds=drain_seconds))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
        start_processes(supervisor, config, Addresses(directory=directory), listener, first)
        listener.close()  # so that clients are refused as soon as the API server stops listening
        logger.info(
            "serving %s as %r on %s://%s:%d once it is loaded",
            config.engine.model_path,
            server.served_model_name,
            server.scheme,
            f"[{host}]" if ":" in host else host,
            port,
        )
        if config.shell:
            near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            chat = ShellConfig(
                host=near,
                port=port,
                api_key=server.api_key,
                certfile=None if server.tls is None else server.tls.certfile,
                model=server.served_model_name,
            )
            supervisor.start("shell", "minisgl.server.shell", chat, terminal=True)
        return supervisor.run()


def start_processes(
    supervisor: Supervisor,
    config: WorkerConfig,
    addresses: Addresses,
    listener: socket.socket,
    first: subprocess.Popen[bytes],
) -> None:
    """Start every process that serves; they wait for each other by themselves."""
    path = config.engine.model_path
    ranks = [f"scheduler-{rank}" for rank in range(config.engine.tp_size)]
    tokenizers = [f"tokenizer-{index}" for index in range(config.num_tokenizers)]
    for rank, name in enumerate(ranks):
        engine = msgspec.structs.replace(
            config.engine, tp_rank=rank, rendezvous=os.path.join(addresses.directory, "rendezvous")
        )
        scheduler = SchedulerProcessConfig(engine=engine, scheduler=config.scheduler, addresses=addresses)
        supervisor.start(name, SCHEDULER, scheduler, spawned=None if rank else first)
    api = ApiConfig(
        server=config.server,
        addresses=addresses,
        listen_fd=listener.fileno(),
        num_tokenizers=config.num_tokenizers,
        processes=(*ranks, *tokenizers, "detokenizer"),
    )
    supervisor.start("api", "minisgl.server.api_process", api, drains=True, pass_fds=(listener.fileno(),))
    for index, name in enumerate(tokenizers):
        tokenizer = TokenizerConfig(model_path=path, addresses=addresses, index=index)
        supervisor.start(name, "minisgl.tokenizer.tokenize_process", tokenizer)
    detokenizer = DetokenizerConfig(model_path=path, addresses=addresses)
    supervisor.start("detokenizer", "minisgl.tokenizer.detokenize_process", detokenizer)


def listen(server: ServerConfig) -> socket.socket:
    """The listening socket. Raises `UserError` when the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        everywhere = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (str(address[0]), server.port), family=family, backlog=2048, dualstack_ipv6=everywhere
        )
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(
            f"cannot listen on {server.host} port {server.port}: {reason}; choose others with --host and --port"
        ) from None
