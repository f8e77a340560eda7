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

from minisgl.distributed.sequence import Division, Room, SequenceParallel, room_for
from minisgl.distributed.shared_memory import CannotShareError, SharedMemory, check_link
from minisgl.kernel import kernels_for

logger = logging.getLogger("minisgl.distributed")

MOST_ROWS = 512
"""Rows of a message that goes through peer memory; NCCL sends what is longer, between more than two ranks."""
LETTER_ROWS, LETTER_BYTES = 16, 256 * 1024
"""Rows that go by letter, and bytes that a rank sends so, the counts not counted."""
AT_ONCE_BYTES = 256 * 1024
"""What a rank may send too much for the sake of one meeting instead of two: every row to all ranks, which all sum
it, rather than to the one that does, and the sum to all. Of two ranks, either way sends as much."""
LONG_PROGRAMS, TOGETHER = 256, 4
"""Of a long message between two ranks: how many send it, and the rows of each at a time."""
PROGRAMS = MOST_ROWS + LONG_PROGRAMS
"""Of all kernels: a row each of short messages, or of the logits."""
ALIGNMENT = 1024
"""Bytes."""
RAISED = 0x3F
"""Each byte of a count beyond all that are waited for."""


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
    tokens: int = 0
    """Of the longest step whose rows ranks divide."""

    def room(self, ranks: int) -> Room:
        """For such steps."""
        return room_for(self.tokens, ranks, self.hidden_size, self.dtype)


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
        _, letters, arrivals, sums, columns, values, rest, end = _offsets(size, messages)
        count = -(-messages.rows // size) * size * messages.width * messages.dtype.itemsize
        self._sums = kernels_for(own, "peers")
        self._shares = kernels_for(own, "shares")
        self._mapped = kernels_for(own, "meeting").Mapped(
            rank,
            LETTER_ROWS,
            MOST_ROWS,
            LONG_PROGRAMS,
            TOGETHER,
            _rows(size),
            torch.tensor(addresses, dtype=torch.int64, device=own.device),
            *(
                tuple(address + start for address in addresses)
                for start in (letters, arrivals, sums, columns, values)
            ),
            own_columns=own[columns : columns + count].view(messages.dtype).view(-1, size * messages.width),
            counts=torch.zeros(PROGRAMS, dtype=torch.int32, device=own.device),
        )
        room = messages.room(size)
        places = [address + rest for address in addresses]
        self._sequence = SequenceParallel(rank, own[rest:end], places, room) if room.rows else None

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """As `Communicator.add_rms_norm`."""
        hidden_size, _, _, dtype, _ = self._messages
        if not len(x) or x.shape[1] != hidden_size or x.dtype != dtype:
            return None
        rows, ranks, kernels = len(x), self._ranks, self._sums
        if (
            rows <= LETTER_ROWS
            and x.nbytes * (ranks - 1) <= LETTER_BYTES
            and (dtype.itemsize, hidden_size % 2) == (2, 0)
        ):
            add = kernels.add_rms_norm_by_letter
        elif rows <= min(_rows(ranks), MOST_ROWS) and (
            ranks == 2 or x.nbytes * (ranks - 1) * (ranks - 2) <= AT_ONCE_BYTES * ranks
        ):
            add = kernels.add_rms_norm_at_once
        elif ranks == 2:
            add = kernels.add_rms_norm_in_turns
        elif rows <= MOST_ROWS:
            add = kernels.add_rms_norm_in_two
        else:
            return None
        return add(self._mapped, x, residual, weight, eps)  # type: ignore[no-any-return]

    def exchange(self, columns: Tensor) -> Tensor | None:
        """As `Communicator.exchange`, maybe with rows of nobody at the end; None where there is no room."""
        _, width, rows, dtype, _ = self._messages
        if not 0 < len(columns) <= rows or columns.shape[1] != width or columns.dtype != dtype:
            return None
        return self._shares.exchange(self._mapped, columns)  # type: ignore[no-any-return]

    def collect(self, own: Tensor, total: int) -> Tensor | None:
        """As `Communicator.collect`, of int64 [share]; None where there is no room."""
        if not 0 < total <= self._messages.rows:
            return None
        return self._shares.collect(self._mapped, own, total)  # type: ignore[no-any-return]

    def divide(self, tokens: int) -> Division | None:
        """As `Communicator.divide`."""
        return None if self._sequence is None else self._sequence.divide(tokens)

    def abandon(self) -> None:
        """Raise every flag of this rank, so that no kernel waits for another rank any more."""
        if self._memory is not None:
            offsets = _offsets(self._ranks, self._messages)
            self._memory.fill(RAISED, 0, offsets[2])
            self._memory.fill(RAISED, offsets[-2], self._messages.room(self._ranks).offsets(self._ranks)[1])

    def close(self) -> None:
        """Unmap the other ranks' buffers and free this one's, to which no rank writes any more."""
        if self._sequence is not None:
            self._sequence.close()
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


def _rows(size: int) -> int:
    """That have room for what comes from each of `size` ranks: two send all rows, more divide them."""
    return MOST_ROWS + 2 * LONG_PROGRAMS * TOGETHER if size == 2 else -(-MOST_ROWS // size)


def _offsets(size: int, messages: Messages) -> list[int]:
    """Where each part of a buffer begins (flags, letters, arrivals, sums, columns, values, and the room for long
    steps), and the last ends."""
    hidden_size, width, rows, dtype, _ = messages
    part = -(-rows // size)
    arrivals = 2 * size * _rows(size) * hidden_size * dtype.itemsize
    sections = [
        2 * size * PROGRAMS * 4,
        2 * size * LETTER_ROWS * (hidden_size // 2) * 8,
        arrivals,
        0 if size == 2 else arrivals,
        part * size * width * dtype.itemsize,
        size * part * 8,
        messages.room(size).offsets(size)[-1],
    ]
    return list(accumulate((-(-section // ALIGNMENT) * ALIGNMENT for section in sections), initial=0))
