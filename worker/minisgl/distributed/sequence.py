"""Sequence parallelism (Korthikanti et al. 2022): ranks divide the rows of a long step's hidden states.

A sum over ranks and the norm after it are made row by row, so each rank can make those of its own rows, and hold
the residual stream of no others. It multiplies the other ranks' rows by its part of a matrix first; copy engines
send those while it multiplies its own. Then it adds up what has come, normalizes it, and multiplies that by its
part of the next matrix while it is sent to the others. So the link works while the multiprocessors do.

Every buffer is there once, since no rank can be so far ahead that it overwrites what another still needs: whoever
sends a summand has multiplied the receiver's normalized rows before, which the receiver sent when it had read the
last summands; and a rank normalizes again only when it has everyone's next summands.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_size_t, c_uint, c_void_p
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minisgl.distributed.shared_memory import call_driver
from minisgl.kernel import kernels_for

LEAST_ROWS = 2049
"""Of a step. Shorter ones may be CUDA graphs, and so may be captured; from here on it was seen to gain."""
MULTIPLE = 16
"""Rows of a share."""
SUMMANDS, NORMALIZED = 0, 1
"""What a flag is about."""


class Division(Protocol):
    """How ranks divide the rows of one step. Every rank calls the same methods in the same order."""

    own: slice
    others: list[tuple[int, slice]]
    """Each other rank and its rows, in the order in which this rank should make their summands."""
    normalized: Tensor
    """[T, size]: of the newest sum, as far as `arrivals` has given it."""

    def summand(self, rank: int) -> Tensor:
        """Where to write what this rank adds to the rows of another: [rows, size], until `send`."""
        ...

    def send(self, rank: int) -> None:
        """Send `summand` to the rank whose rows they are; it may be written again when its rows have arrived."""
        ...

    def add_rms_norm(self, own: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
        """Add to `residual` [own rows, size] what every rank adds, this one `own`; `normalized` is the norm of it.

        Both are this rank's rows alone.
        """
        ...

    def arrivals(self) -> Iterator[slice]:
        """Rows of `normalized` that can be read: this rank's at once, then each other's when they are here."""
        ...


class Room(NamedTuple):
    """In each rank's buffer, for what is sent."""

    size: int
    """Of a row."""
    rows: int
    """Of a share, at most: a multiple of `MULTIPLE`."""
    dtype: torch.dtype

    def offsets(self, ranks: int) -> list[int]:
        """Where each part begins: flags int32 [2, ranks], summands that arrive [ranks - 1, rows, size], those to
        send, what is normalized [ranks * rows, size]; and the end."""
        share = self.rows * self.size * self.dtype.itemsize
        flags = -(-8 * ranks // 1024) * 1024
        return list(accumulate((flags, (ranks - 1) * share, (ranks - 1) * share, ranks * share), initial=0))


def room_for(tokens: int, ranks: int, size: int, dtype: torch.dtype) -> Room:
    """For steps of up to `tokens`; none for steps that are not worth it."""
    return Room(size, _share(tokens, ranks) if tokens >= LEAST_ROWS else 0, dtype)


class SequenceParallel:
    """What one rank needs to divide steps with the others."""

    def __init__(self, rank: int, own: Tensor, addresses: list[int], room: Room) -> None:
        """`own`: uint8, zeros, this rank's buffer; `addresses`: of every rank's, as this process sees them."""
        self.rank, self.addresses, self.room = rank, addresses, room
        ranks = len(addresses)
        self.offsets = starts = room.offsets(ranks)
        summands, outgoing, normalized = (
            own[first:last].view(room.dtype).view(-1, room.rows, room.size) for first, last in pairwise(starts[1:])
        )
        self.flags = own[: 8 * ranks].view(torch.int32).view(2, ranks)
        """Of `SUMMANDS` and `NORMALIZED`: the count of the sum of which each rank has sent them."""
        self.summands, self.outgoing = summands, outgoing
        self.normalized = normalized.view(-1, room.size)
        self.stream = torch.cuda.Stream(own.device)  # type: ignore[no-untyped-call]
        self.count = 0
        """Sums so far."""

    def divide(self, tokens: int) -> Division | None:
        """The rows of a step; None where there are too few for all ranks, or no room for so many."""
        ranks = len(self.addresses)
        share = _share(tokens, ranks)
        if tokens < LEAST_ROWS or tokens <= (ranks - 1) * share or share > self.room.rows:
            return None
        return _Division(self, tokens, share)

    def close(self) -> None:
        """Wait for what is being sent."""
        self.stream.synchronize()


class _Division:
    """Over NVLink, by copy engines: no kernel would find a place beside a matrix product."""

    def __init__(self, parallel: SequenceParallel, tokens: int, share: int) -> None:
        self._parallel, self._tokens, self._share = parallel, tokens, share
        self._kernels = kernels_for(parallel.flags, "sequence")
        self._main = torch.cuda.current_stream()
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        rank, ranks = parallel.rank, len(parallel.addresses)
        self.own = self._rows(rank)
        # Each rank begins with the one after it, so that no two send to the same.
        self.others = [(other % ranks, self._rows(other % ranks)) for other in range(rank + 1, rank + ranks)]
        self.normalized = parallel.normalized[:tokens]

    def summand(self, rank: int) -> Tensor:
        rows = self._rows(rank)
        place = self._parallel.outgoing[_slot(self._parallel.rank, rank)]
        return place[: rows.stop - rows.start]

    def send(self, rank: int) -> None:
        parallel, sent = self._parallel, self.summand(rank)
        slot = _slot(rank, parallel.rank)
        place = parallel.offsets[1] + slot * parallel.summands[0].nbytes
        self._send(sent, rank, place, SUMMANDS, parallel.count + 1)

    def add_rms_norm(self, own: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
        parallel = self._parallel
        parallel.count += 1
        for rank, _ in self.others:
            self._await(SUMMANDS, rank)
        made = self.normalized[self.own]
        self._kernels.add_rms_norm_of_share(own, parallel.summands, parallel.rank, residual, weight, eps, made)
        place = parallel.offsets[3] + self.own.start * made.stride(0) * made.itemsize
        for rank, _ in reversed(self.others):  # the one that is to multiply these rows first
            self._send(made, rank, place, NORMALIZED, parallel.count)

    def arrivals(self) -> Iterator[slice]:
        yield self.own
        for rank, rows in self.others:
            self._await(NORMALIZED, rank)
            yield rows

    def _rows(self, rank: int) -> slice:
        return slice(min(rank * self._share, self._tokens), min((rank + 1) * self._share, self._tokens))

    def _send(self, rows: Tensor, rank: int, place: int, kind: int, count: int) -> None:
        """Copy `rows` to a place in another rank's buffer, and then set this rank's flag there to `count`."""
        parallel = self._parallel
        self._ready.record(self._main)
        parallel.stream.wait_event(self._ready)
        stream, theirs = c_void_p(parallel.stream.cuda_stream), parallel.addresses[rank]
        target, source = c_void_p(theirs + place), c_void_p(rows.data_ptr())
        call_driver("cuMemcpyAsync", target, source, c_size_t(rows.nbytes), stream)
        flag = c_void_p(theirs + 4 * (kind * len(parallel.addresses) + parallel.rank))
        call_driver("cuStreamWriteValue32_v2", stream, flag, c_uint(count & 0xFFFFFFFF), c_uint(0))

    def _await(self, kind: int, rank: int) -> None:
        """Let what is launched from now on wait for another rank: by a kernel, beside which `abandon` can work."""
        signed = (self._parallel.count + (1 << 31)) % (1 << 32) - (1 << 31)
        self._kernels.await_flag(self._parallel.flags[kind, rank], signed)


def _slot(owner: int, other: int) -> int:
    """Of what `owner` has one each of for the others: the place of that for `other`."""
    return other - (other > owner)


def _share(tokens: int, ranks: int) -> int:
    return -(-tokens // (ranks * MULTIPLE)) * MULTIPLE
