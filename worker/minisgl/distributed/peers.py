"""Memory that every GPU of a worker has mapped, and the collectives that go through it.

NCCL takes as long for a few kilobytes as for a hundred: a decode step, with two sums a layer, waits most of that.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from minisgl.distributed.shared_memory import CannotShareError, SharedMemory, check_link
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
RAISED = 0x3F
"""Of a flag's bytes: a count beyond all that are waited for."""


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

    def __init__(
        self, rank: int, own: Tensor, addresses: list[int], messages: Messages, memory: SharedMemory | None = None
    ) -> None:
        """`own`: uint8 [`buffer_bytes`], zeros; `addresses`: of each rank's, as this process sees them.

        `memory`: what keeps them there.
        """
        self._memory = memory
        self._messages = messages
        self._ranks = size = len(addresses)
        _, arrivals, sums, columns, values, _ = _offsets(size, messages)
        count = -(-messages.rows // size) * size * messages.width * messages.dtype.itemsize
        self._kernels = kernels_for(own, "peers")
        self._mapped = self._kernels.Mapped(
            rank,
            _group_rows(size),
            torch.tensor(addresses, dtype=torch.int64, device=own.device),
            *(tuple(address + start for address in addresses) for start in (arrivals, sums, columns, values)),
            own_columns=own[columns : columns + count].view(messages.dtype).view(-1, size * messages.width),
            counts=torch.zeros(PROGRAMS, dtype=torch.int32, device=own.device),
        )

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

    def abandon(self) -> None:
        """Raise every flag of this rank, so that no kernel waits for another rank any more."""
        if self._memory is not None:
            self._memory.fill(RAISED, _offsets(self._ranks, self._messages)[1])

    def close(self) -> None:
        """Unmap the other ranks' buffers and free this one's, to which no rank writes any more."""
        if self._memory is not None:
            self._memory.close()


def connect_peers(store: Store, rank: int, size: int, device: torch.device, messages: Messages) -> Peers | None:
    """Map the other ranks' buffers; None on every rank when one cannot, which the log says."""
    memory, problem = None, ""
    try:
        for other in range(size):
            if other != rank:
                check_link(rank, other)
        memory = SharedMemory(buffer_bytes(size, messages), device)
        store.set(f"handle-{rank}", memory.handle.hex())
    except CannotShareError as error:
        problem = str(error)
        store.set(f"handle-{rank}", "")
    handles = [bytes.fromhex(store.get(f"handle-{other}").decode()) for other in range(size)]
    addresses = []
    if memory is not None and all(handles):
        try:
            addresses = [
                memory.address if other == rank else memory.map(handle) for other, handle in enumerate(handles)
            ]
        except CannotShareError as error:
            problem = str(error)
    store.set(f"problem-{rank}", problem)
    problems = [store.get(f"problem-{other}").decode() for other in range(size)]
    if memory is None or any(problems):
        first = next(other for other in range(size) if problems[other])
        logger.info("no peer memory: GPU %d: %s; NCCL sends everything", first, problems[first])
        if memory is not None:
            memory.close()
        return None
    return Peers(rank, memory.tensor(), addresses, messages, memory)


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
