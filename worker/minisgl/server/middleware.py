"""What every HTTP exchange has in common: a request id, and a key if the server has one."""

from __future__ import annotations

import hmac
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minisgl.server.errors import wrong_key
from minisgl.server.readiness import Phase, Readiness

REQUEST_ID = "minisgl.request_id"
"""Where a request's scope holds its id."""
OPEN_PATHS = frozenset({"/live", "/ready", "/health", "/metrics"})
"""Probes and scrapers have no key."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Common:
    """ASGI middleware: returns ``x-request-id``, asks for the key, closes connections while draining."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, readiness: Readiness) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = scope[REQUEST_ID] = given if _GOOD_ID.fullmatch(given) else secrets.token_hex(16)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marked = MutableHeaders(scope=message)
                marked["x-request-id"] = request_id
                if self._readiness.phase is not Phase.SERVING:
                    marked["connection"] = "close"  # so that the client's next request may reach another server
            await send(message)

        allowed = self._key is None or scope["path"] in OPEN_PATHS or self._has_key(headers)
        await (self._app if allowed else wrong_key().response())(scope, receive, send_marked)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._key or b"")
        return right and scheme.lower() == "bearer"
