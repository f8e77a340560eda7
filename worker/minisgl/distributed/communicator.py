"""All-reduce and all-gather between the ranks of one worker: gloo on a CPU, NCCL on GPUs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

TIMEOUT = timedelta(minutes=30)
"""For a rank that loads its weights slowly. A rank that dies is seen at once: its connections close."""


class Communicator:
    """This process's place among `size` ranks. Every rank calls the same methods in the same order.

    With one rank nothing is sent, and every method returns its argument.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        """A backend of torch.distributed, whose type stubs lack its methods. Held here, so that none is global."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place. Each sum is made once, so every rank holds the same bits."""
        if self.size > 1:
            self._group.allreduce([tensor]).wait()
        return tensor

    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Concatenate the ranks' tensors, all of one shape, along `dim`, in the order of the ranks."""
        if self.size == 1:
            return tensor
        stacked = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        self._group._allgather_base(stacked, tensor.contiguous()).wait()
        return torch.cat(stacked.view(self.size, *tensor.shape).unbind(), dim)

    def close(self) -> None:
        """Leave the group, whose collectives are no more: a rank that waits for this one in one of them fails."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None


def connect(rank: int, size: int, rendezvous_file: str, device: torch.device) -> Communicator:
    """Meet the other ranks at `rendezvous_file`, a path on this host that no earlier group has used.

    Returns when all `size` ranks are there. `device` is this rank's.
    """
    if size == 1:
        return Communicator()
    store = FileStore(rendezvous_file, size)
    backend = _nccl if device.type == "cuda" else _gloo
    return Communicator(rank, size, backend(store, rank, size))


def _gloo(store: FileStore, rank: int, size: int) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # All ranks are on this host, whose own name need not resolve.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: FileStore, rank: int, size: int) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    return dist.ProcessGroupNCCL(store, rank, size, options)
