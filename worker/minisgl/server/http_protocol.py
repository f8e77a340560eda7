"""uvicorn's HTTP/1.1 protocol, hardened: bounded headers, no upgrades, errors in the shape of the others."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minisgl.server.errors import invalid

MAX_HEAD_BYTES = 64 * 1024

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Http11Protocol(HttpToolsProtocol):
    """Refuses a request line, headers, chunk extensions or trailers that do not end within `MAX_HEAD_BYTES`.

    An offer to upgrade is not taken and not seen: the parser would stop before the body of the request, and Java's
    client offers h2c with every request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._unfinished = 0
        """Bytes since the parser last finished a head, a piece of body or a message."""

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nx-refused-upgrade:", head) + end + rest
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unfinished = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._unfinished = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error without the application having seen it."""
        if self.cycle is None or self.cycle.response_complete:
            body = msgspec.json.encode(invalid(msg).body())
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
