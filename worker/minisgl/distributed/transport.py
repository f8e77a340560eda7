"""What a communicator is built on: three collectives, by torch.distributed or by NCCL itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

TIMEOUT = timedelta(minutes=30)
"""For a rank that loads its weights slowly. A rank that dies is seen at once: its connections close."""


class Transport(Protocol):
    """Collectives of contiguous tensors; every rank calls the same ones in the same order.

    On a GPU they are queued on the current stream, and the results are there for what is queued after.
    """

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the ranks, in place."""
        ...

    def all_gather(self, out: Tensor, tensor: Tensor) -> None:
        """``out[r] = tensor`` of rank r: `out` has one dimension more."""
        ...

    def all_to_all(self, out: Tensor, tensor: Tensor) -> None:
        """``out[r] = tensor[own rank]`` of rank r: both are [ranks, ...], of one shape."""
        ...

    def abandon(self) -> None:
        """Called by another thread, when a rank is gone: what waits on this device for it ends."""
        ...

    def close(self) -> None:
        """Leave: a rank that waits for this one fails. No CUDA graph may be left that captured a collective."""
        ...


class ProcessGroup:
    """A backend of torch.distributed, held here and registered nowhere, so that none is global."""

    def __init__(self, group: Any) -> None:
        """`group`: its type stubs lack the methods that are called here."""
        self._group = group

    @classmethod
    def gloo(cls, store: Store, rank: int, size: int) -> ProcessGroup:
        """For tensors on a CPU."""
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        # All ranks are on this host, whose own name need not resolve.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = TIMEOUT
        return cls(dist.ProcessGroupGloo(store, rank, size, options))

    @classmethod
    def nccl(cls, store: Store, rank: int, size: int) -> ProcessGroup:
        """For tensors on this rank's GPU."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return cls(dist.ProcessGroupNCCL(store, rank, size, options))

    def all_reduce(self, tensor: Tensor) -> None:
        self._group.allreduce([tensor]).wait()

    def all_gather(self, out: Tensor, tensor: Tensor) -> None:
        self._group._allgather_base(out.flatten(0, 1), tensor).wait()

    def all_to_all(self, out: Tensor, tensor: Tensor) -> None:
        self._group.alltoall_base(out, tensor, [], []).wait()

    def abandon(self) -> None:
        if not isinstance(self._group, dist.ProcessGroupGloo):  # where it fails by itself
            self._group.abort()

    def close(self) -> None:
        self._group.shutdown()
