"""All-reduce and its relatives between the ranks of one worker: gloo on a CPU; NCCL and peer memory on GPUs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

from minisgl.distributed.nccl import Nccl
from minisgl.distributed.peers import Messages, Peers, connect_peers
from minisgl.distributed.sequence import Division
from minisgl.distributed.transport import ProcessGroup, Transport

POLL_SECONDS = 0.02
"""Between two looks at whether all ranks have come."""


class RankWatch(Protocol):
    """Knows whether the other ranks live."""

    def check(self) -> None:
        """Raise if one has ended."""
        ...

    def when_lost(self, give_up: Callable[[], None]) -> None:
        """Call `give_up`, once, in another thread, should one end or have ended; by then none is left."""
        ...


class Communicator:
    """This process's place among `size` ranks. Every rank calls the same methods in the same order.

    With one rank nothing is sent, and every method returns its argument.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, transport: Transport | None = None, peers: Peers | None = None
    ) -> None:
        """`peers` does what it can of a step's small messages; without it, all is the transport's."""
        self.rank = rank
        self.size = size
        self._transport = transport
        self._peers = peers
        self._ending = threading.Lock()
        """`abandon` and `close` may come from two threads."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place. Each sum is made once, so every rank holds the same bits."""
        if self._transport is not None:
            self._transport.all_reduce(tensor)
        return tensor

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """Sum `x` [T, size] over the ranks, add it to `residual` in place, and return the sum normalized.

        None, and nothing is done, where peer memory cannot do it.
        """
        return None if self._peers is None else self._peers.add_rms_norm(x, residual, weight, eps)

    def divide(self, tokens: int) -> Division | None:
        """How ranks divide the rows of a step of so many tokens; None where each has all of them."""
        return None if self._peers is None else self._peers.divide(tokens)

    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Concatenate the ranks' tensors, all of one shape, along `dim`, in the order of the ranks."""
        if self._transport is None:
            return tensor
        stacked = tensor.new_empty((self.size, *tensor.shape))
        self._transport.all_gather(stacked, tensor.contiguous())
        return torch.cat(stacked.unbind(), dim)

    def share(self, rows: int) -> slice:
        """The rows of this rank, when ranks divide them: equal parts, of which the last may be shorter."""
        part = -(-rows // self.size)
        return slice(min(self.rank * part, rows), min((self.rank + 1) * part, rows))

    def exchange(self, columns: Tensor) -> Tensor:
        """This rank's columns of every row [S, width] -> every column of its own rows [share of S, size * width].

        So each rank is sent what it is to choose tokens from, and no rank the whole.
        """
        if self._transport is None:
            return columns
        own, part = self.share(len(columns)), -(-len(columns) // self.size)
        count = own.stop - own.start
        here = None if self._peers is None else self._peers.exchange(columns)
        if here is not None:
            return here[:count]
        sent = columns.new_empty((self.size, part, columns.shape[1]))
        sent.view(-1, columns.shape[1])[: len(columns)] = columns
        received = torch.empty_like(sent)
        self._transport.all_to_all(received, sent)
        return received.transpose(0, 1).reshape(part, -1)[:count]

    def collect(self, own: Tensor, rows: int) -> Tensor:
        """int64 values of this rank's share of `rows` -> those of all rows, int64 [rows]."""
        if self._transport is None:
            return own
        everyone = None if self._peers is None else self._peers.collect(own, rows)
        if everyone is not None:
            return everyone
        padded = own.new_zeros(-(-rows // self.size))
        padded[: len(own)] = own
        return self.all_gather(padded)[:rows]

    def abandon(self) -> None:
        """Called by another thread, when a rank is gone: what waits for it on this device ends, with any result.

        A collective on a CPU fails by itself.
        """
        with self._ending:
            if self._peers is not None:
                self._peers.abandon()
            if self._transport is not None:
                self._transport.abandon()

    def close(self) -> None:
        """Leave the group, whose collectives are no more: a rank that waits for this one in one of them fails.

        No CUDA graph may be left that captured one.
        """
        with self._ending:
            if self._peers is not None:
                self._peers.close()
                self._peers = None
            if self._transport is not None:
                self._transport.close()
                self._transport = None


def connect(
    rank: int,
    size: int,
    rendezvous_file: str,
    device: torch.device,
    *,
    pynccl: bool = True,
    messages: Messages | None = None,
    watch: RankWatch | None = None,
) -> Communicator:
    """Meet the other ranks at `rendezvous_file`, a path on this host that no earlier group has used.

    Returns when all `size` ranks are there. `device` is this rank's. On GPUs `pynccl` calls NCCL without torch,
    and `messages` go through peer memory, where the GPUs can map each other's. `watch` gives up the waiting, and
    later the communicator, when a rank is gone.
    """
    if size == 1:
        return Communicator()
    store = FileStore(rendezvous_file, size)
    store.set(f"here-{rank}", "")
    while not store.check([f"here-{other}" for other in range(size)]):  # libraries could not be told to give up
        if watch is not None:
            watch.check()
        time.sleep(POLL_SECONDS)
    comm = _connect(rank, size, store, device, pynccl, messages)
    if watch is not None:
        watch.when_lost(comm.abandon)
    return comm


def _connect(
    rank: int, size: int, store: FileStore, device: torch.device, pynccl: bool, messages: Messages | None
) -> Communicator:
    if device.type == "cpu":
        return Communicator(rank, size, ProcessGroup.gloo(store, rank, size))
    # NVLink's multicast is off unless the environment asks for it: a program that dies with it set up can leave a
    # host's GPUs unusable.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    transport: Transport = Nccl(store, rank, size) if pynccl else ProcessGroup.nccl(store, rank, size)
    peers = None
    if messages is not None:
        try:
            peers = connect_peers(PrefixStore("peers", store), rank, size, device, messages)
        except BaseException:
            transport.close()  # a process that holds half a group may not end
            raise
    return Communicator(rank, size, transport, peers)
