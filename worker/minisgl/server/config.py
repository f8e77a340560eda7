"""What the launcher and the processes of this room are told."""

from __future__ import annotations

import msgspec

from minisgl.core.config import Addresses, EngineConfig, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.server.dialect import Dialect
from minisgl.server.tls import Tls
from minisgl.utils.log import LogFormat


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP surface, as the user asked for it."""

    served_model_name: str
    model: str = ""
    """Where the model comes from, as clients may know it: its id on the Hub, or its directory's name."""
    host: str = "127.0.0.1"
    port: int = 1919
    """0: a free one."""
    api_key: str | None = None
    tls: Tls | None = None
    """None: plain HTTP."""
    sampling: SamplingParams = SamplingParams()
    """What the model recommends, for requests that do not say."""
    dialect: Dialect = Dialect()
    """How the model's answers are read."""
    max_queued_requests: int = 1024
    """Prompts accepted beyond those that the engine can run at once."""
    max_body_size: int = 8 * 1024 * 1024
    """Bytes of one request."""
    drain_grace: float = 5.0
    """Seconds after SIGTERM in which new requests are still served."""
    drain_timeout: float = 120.0
    """Seconds after the grace time that requests in flight may take."""
    page: bool = True
    """Serve the page for people at ``/``."""
    otlp_traces_endpoint: str | None = None
    """A URL that spans are sent to. None: nothing is traced."""

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole worker: what the launcher starts."""

    engine: EngineConfig
    """Rank 0's; the others differ in `tp_rank`."""
    scheduler: SchedulerConfig
    server: ServerConfig
    num_tokenizers: int = 1
    log_level: str = "info"
    log_format: LogFormat = "text"
    shell: bool = False
    """Chat in this terminal; the worker ends with the chat."""


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The API server's process."""

    server: ServerConfig
    addresses: Addresses
    listen_fd: int
    """The listening socket, inherited from the launcher."""
    num_tokenizers: int
    processes: tuple[str, ...]
    """Those whose heartbeats must be fresh."""


class ShellConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The chat in the terminal."""

    host: str
    port: int
    api_key: str | None
    certfile: str | None = None
    """What an HTTPS server shows. None: it speaks plain HTTP."""
    model: str
