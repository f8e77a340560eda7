"""MessagePack frames. The decoder builds the declared types and nothing else."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """One message as one frame."""
    return _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes frames of one declared type, a `msgspec.Struct` or a union of tagged ones."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def __call__(self, frame: bytes) -> T:
        """Raises `msgspec.ValidationError` when the frame is not of the declared type."""
        return self._decoder.decode(frame)
