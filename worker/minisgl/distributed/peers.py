"""Memory that every GPU of a worker has mapped, and the collectives that go through it.

NCCL takes as long for a few kilobytes as for a hundred: a decode step, with two sums a layer, waits most of that.
"""

from __future__ import annotations

import logging
import math
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store, _SymmetricMemory

from minisgl.kernel import kernels_for

logger = logging.getLogger("minisgl.distributed")

MOST_ROWS = 512
"""Rows of a message that goes through peer memory; NCCL sends what is longer."""
AT_ONCE_BYTES = 256 * 1024
"""Up to so many bytes, sent to all ranks together, every rank sums every row: one meeting instead of two."""
PROGRAMS = 512
"""Most programs of a kernel."""
ALIGNMENT = 1024
"""Bytes."""
GROUP = "minisgl"
"""What the ranks are called in this process: it belongs to one worker."""


class Messages(NamedTuple):
    """What ranks send each other in a step."""

    hidden_size: int
    """Of the rows that are summed."""
    width: int
    """Of a rank's part of the logits."""
    rows: int
    """Of logits, at most."""
    dtype: torch.dtype
    """Of both."""


class Peers:
    """The buffers of all ranks. Every rank calls the same methods with equal shapes in the same order."""

    def __init__(self, rank: int, buffers: list[Tensor], messages: Messages, mapping: object = None) -> None:
        """`buffers`: uint8 [`buffer_bytes`], zeros, one a rank; `mapping`: what keeps them mapped."""
        self._mapping = mapping
        self._messages = messages
        size, group = len(buffers), _group_rows(len(buffers))
        hidden_size, width, rows, dtype = messages
        part = -(-rows // size)
        shapes = [
            (2, size, group, hidden_size),
            (2, size * group, hidden_size),
            (part, size * width),
            (size * part,),
        ]
        kinds = (dtype, dtype, dtype, torch.int64)
        sections = pairwise(_offsets(size, messages)[1:])
        views = [
            tuple(buffer[start:stop].view(kind)[: math.prod(shape)].view(shape) for buffer in buffers)
            for (start, stop), shape, kind in zip(sections, shapes, kinds, strict=True)
        ]
        device = buffers[rank].device
        self._kernels = kernels_for(buffers[rank], "peers")
        self._mapped = self._kernels.Mapped(
            rank,
            torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.int64, device=device),
            *views,
            counts=torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
        )
        self._ranks = size

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """As `Communicator.add_rms_norm`."""
        hidden_size, _, _, dtype = self._messages
        if not 0 < len(x) <= MOST_ROWS or x.shape[1] != hidden_size or x.dtype != dtype:
            return None
        few = len(x) <= _group_rows(self._ranks) and x.nbytes * (self._ranks - 1) <= AT_ONCE_BYTES
        add = self._kernels.add_rms_norm_at_once if few else self._kernels.add_rms_norm_in_two
        return add(self._mapped, x, residual, weight, eps)  # type: ignore[no-any-return]

    def exchange(self, columns: Tensor) -> Tensor | None:
        """As `Communicator.exchange`, maybe with rows of nobody at the end; None where there is no room."""
        _, width, rows, dtype = self._messages
        if not 0 < len(columns) <= rows or columns.shape[1] != width or columns.dtype != dtype:
            return None
        return self._kernels.exchange(self._mapped, columns)  # type: ignore[no-any-return]

    def collect(self, own: Tensor, total: int) -> Tensor | None:
        """As `Communicator.collect`, of int64 [share]; None where there is no room."""
        if not 0 < total <= self._messages.rows:
            return None
        return self._kernels.collect(self._mapped, own, total)  # type: ignore[no-any-return]


def connect_peers(store: Store, rank: int, size: int, device: torch.device, messages: Messages) -> Peers | None:
    """Map the other ranks' buffers; None on every rank when some GPU cannot map another's, which the log says."""
    reachable = all(other == rank or torch.cuda.can_device_access_peer(rank, other) for other in range(size))
    store.set(f"reachable-{rank}", str(int(reachable)))
    unreachable = [other for other in range(size) if store.get(f"reachable-{other}") != b"1"]
    if unreachable:
        logger.info("no peer memory: GPU %d cannot map the others'; NCCL sends everything", unreachable[0])
        return None
    count = buffer_bytes(size, messages)
    _SymmetricMemory.set_group_info(GROUP, rank, size, store)
    own = _SymmetricMemory.empty_strided_p2p((count,), (1,), torch.uint8, device, GROUP).zero_()
    handle = _SymmetricMemory.rendezvous(own)
    buffers = [own if other == rank else handle.get_buffer(other, (count,), torch.uint8) for other in range(size)]
    handle.barrier()  # every buffer is zero
    torch.cuda.synchronize(device)
    return Peers(rank, buffers, messages, mapping=handle)


def buffer_bytes(size: int, messages: Messages) -> int:
    """Of the buffer of each of `size` ranks."""
    return _offsets(size, messages)[-1]


def _group_rows(size: int) -> int:
    """Rows that each of `size` ranks sums when they divide the most that there are."""
    return -(-MOST_ROWS // size)


def _offsets(size: int, messages: Messages) -> list[int]:
    """Where each part of a buffer begins (flags, arrivals, sums, columns, values), and where the last ends."""
    hidden_size, width, rows, dtype = messages
    part = -(-rows // size)
    summed = 2 * size * _group_rows(size) * hidden_size * dtype.itemsize
    sections = [2 * size * PROGRAMS * 4, summed, summed, part * size * width * dtype.itemsize, size * part * 8]
    return list(accumulate((-(-section // ALIGNMENT) * ALIGNMENT for section in sections), initial=0))
