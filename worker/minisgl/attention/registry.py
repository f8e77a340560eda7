"""The attention backends by name."""

from __future__ import annotations

from collections.abc import Callable

from minisgl.attention.base import Backend
from minisgl.attention.paged import PagedAttention
from minisgl.attention.torch_backend import TorchBackend
from minisgl.kvcache.pool import KVPool
from minisgl.utils.errors import UserError

Windows = tuple[int | None, ...]
"""Of each layer: how many tokens a token attends to, itself included. None: all before it."""

BACKENDS: dict[str, Callable[[KVPool, Windows], Backend]] = {"torch": TorchBackend}


def check_attention(names: tuple[str, str]) -> None:
    """Raise `UserError` unless both backends, for prefill and for decode, are there."""
    for name in names:
        if name not in BACKENDS:
            raise UserError(f"--attn {name}: this backend is not available; allowed: {', '.join(BACKENDS)}")


def create_attention(names: tuple[str, str], pool: KVPool, windows: Windows) -> PagedAttention:
    """Attention with the backends `names`, for prefill and for decode, which are there."""
    made = {name: BACKENDS[name](pool, windows) for name in names}
    return PagedAttention(pool, prefill=made[names[0]], decode=made[names[1]])
