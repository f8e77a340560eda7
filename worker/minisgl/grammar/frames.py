"""Texts over a pipe: a length of four bytes, then UTF-8."""

from __future__ import annotations

import struct
from typing import IO

_LENGTH = struct.Struct("<I")


def read_frame(stream: IO[bytes]) -> str | None:
    """The next text; None at the end."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    return stream.read(length).decode()


def write_frame(stream: IO[bytes], text: str) -> None:
    data = text.encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()
