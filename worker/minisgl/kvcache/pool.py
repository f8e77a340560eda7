"""The keys and values of every cached token, in pages, on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from minisgl.utils.errors import UserError


class KVPool:
    """One array [num_layers, num_pages, page_size, 2, kv_heads, head_dim] of keys (0) and values (1).

    A token's keys and values lie side by side, so that one copy fetches both, whatever the page size.
    A slot is ``page * page_size + offset``. What no token has written yet is 0: a masked score multiplies it.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        """`dtype`: of the keys and values that layers make and attend to. `stored`: what they are rounded to in
        the pool, if not the same. Raises `UserError` when the device has not the memory.
        """
        self.dtype = dtype
        stored = stored or dtype
        self.rounds = stored != dtype
        self.num_pages = num_pages
        self.page_size = page_size
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        shape = (num_layers, num_pages, page_size, 2, kv_heads, head_dim)
        try:
            data = _zeros(shape, stored, device)
        except (MemoryError, torch.OutOfMemoryError) as error:
            size = num_pages * page_bytes(num_layers, page_size, kv_heads, head_dim, stored)
            raise UserError(
                f"--num-pages: the KV pool of {num_pages} pages takes {size / 2**30:.2f} GiB, "
                f"which {device} does not have free"
            ) from error
        self.layers: list[Tensor] = list(data.unbind())
        """Of each layer, [num_pages, page_size, 2, kv_heads, head_dim]."""
        self.slots: list[Tensor] = [layer.flatten(0, 1) for layer in self.layers]
        """Of each layer, [slots, 2, kv_heads, head_dim]: the same memory."""


def page_bytes(num_layers: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes in all layers."""
    return num_layers * page_size * 2 * kv_heads * head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # calloc: the kernel hands out memory that is zero already, and only when a page is first used. torch.zeros
    # would write all of it.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
