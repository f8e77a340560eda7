"""One HTTP request and its answer, as logs and traces tell of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from minisgl.server.errors import ApiError
from minisgl.utils.log import with_fields

if TYPE_CHECKING:
    from minisgl.server.generation import Generation
    from minisgl.server.openai_types import GenerateRequest

EXCHANGE = "minisgl.exchange"
"""Where a request's scope holds its `Exchange`."""
OPEN_PATHS = frozenset({"/", "/live", "/ready", "/health", "/metrics"})
"""Probes, scrapers and the first look of a browser have no key."""
CLIENT_LEFT = 499
"""The status, nginx's, of a request whose client left before the answer began."""

logger = logging.getLogger("minisgl.server")


class Exchange:
    """Begins with the request's headers; those who serve it fill in what they learn; ends with the answer."""

    def __init__(self, scope: Scope, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.arrived_at = time.perf_counter()
        self.status = CLIENT_LEFT
        self.error: ApiError | None = None
        """What the client was told instead of an answer."""
        self.body: GenerateRequest | None = None
        """What was asked of a generating endpoint, once it is known to be valid."""
        self.generation: Generation | None = None
        self.outcome = ""
        """How the generation ended: finish reasons, or what kept it from them."""

    @property
    def path(self) -> str:
        """As it came, without the query: unlike the decoded one it has no line ends."""
        raw: bytes = self.scope.get("raw_path") or b""
        return raw[:200].decode("ascii", "backslashreplace")

    @property
    def client(self) -> str | None:
        """The address at the other end of the connection, which may be a proxy's."""
        return self.scope["client"][0] if self.scope.get("client") else None

    @property
    def fields(self) -> dict[str, Any]:
        """What every line about it has in a log for machines."""
        return {
            "request_id": self.request_id,
            "method": self.scope["method"],
            "path": self.path,
            "status": self.status,
            "client": self.client,
        }


Observer = Callable[[Exchange], None]
"""Is told of every exchange when it has ended."""


def log_exchange(exchange: Exchange) -> None:
    """One line: of generating requests and of refused ones at info level, of others for debugging.

    So are probes' failures, and requests without the key: strangers could fill the log with them.
    """
    if exchange.generation is not None:
        _log_generation(exchange, exchange.generation)
        return
    told = exchange.status >= 400 and exchange.status != 401 and exchange.path not in OPEN_PATHS
    level = logging.INFO if told else logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    duration = time.perf_counter() - exchange.arrived_at
    error = exchange.error
    code = None if error is None else error.code
    param = None if error is None else error.param
    logger.log(
        level,
        "request %s: %s %s from %s: %d%s%s after %.3f s",
        exchange.request_id,
        exchange.scope["method"],
        exchange.path,
        exchange.client,
        exchange.status,
        "" if code is None else f" {code}",
        "" if param is None else f" ({param!r})",
        duration,
        extra=with_fields(
            **exchange.fields,
            error=code,
            param=param,
            duration=round(duration, 6),
        ),
    )


def _log_generation(exchange: Exchange, generation: Generation) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    first = generation.first_token_at
    ttft = None if first is None else first - generation.arrived_at
    duration = time.perf_counter() - generation.arrived_at
    logger.info(
        "request %s: %d prompt tokens, %d of them cached, %d out, first after %s s, all after %.3f s, %s%s",
        exchange.request_id,
        generation.prompt_tokens,
        generation.cached_tokens,
        generation.generated,
        "-" if ttft is None else f"{ttft:.3f}",
        duration,
        exchange.outcome,
        "" if generation.user is None else f", user {generation.user!r}",
        extra=with_fields(
            **exchange.fields,
            prompt_tokens=generation.prompt_tokens,
            cached_tokens=generation.cached_tokens,
            completion_tokens=generation.generated,
            ttft=None if ttft is None else round(ttft, 6),
            duration=round(duration, 6),
            finish_reason=exchange.outcome,
            user=generation.user,
        ),
    )
