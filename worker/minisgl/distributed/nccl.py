"""NCCL without torch between: a call queues one kernel on the current stream, and a CUDA graph can capture it.

torch.distributed runs its collectives on a stream of its own, with events around each. NCCL's interface is that of
its user guide, "API".
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_void_p
from functools import cache

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from minisgl.utils.errors import UserError

LIBRARY = "libnccl.so.2"
"""The one that torch has loaded already."""
SUM = 0
TYPES = {torch.int32: 2, torch.int64: 4, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
BYTE = 1
"""What tensors are sent as when their numbers do not matter."""


class NcclError(RuntimeError):
    """A call to NCCL failed."""


class _UniqueId(ctypes.Structure):
    _fields_ = (("data", c_char * 128),)


@cache
def _library() -> ctypes.CDLL:
    """Raises `UserError` when there is none, or one too old."""
    try:
        library = ctypes.CDLL(LIBRARY)
        library.ncclGetErrorString.restype = c_char_p
        library.ncclGetUniqueId.argtypes = [c_void_p]
        library.ncclCommInitRank.argtypes = [c_void_p, c_int, _UniqueId, c_int]
        library.ncclAllReduce.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
        library.ncclAllGather.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_void_p, c_void_p]
        library.ncclSend.argtypes = [c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
        library.ncclRecv.argtypes = [c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
        library.ncclCommAbort.argtypes = [c_void_p]
    except (OSError, AttributeError) as error:
        raise UserError(
            f"NCCL cannot be called: {error}; --disable-pynccl leaves it to torch.distributed"
        ) from None
    return library


def _check(result: int) -> None:
    if result:
        raise NcclError(_library().ncclGetErrorString(c_int(result)).decode())


class Nccl:
    """One communicator: `minisgl.distributed.transport.Transport`."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        """Meets the other ranks through `store`, on the current device.

        Raises `UserError` without the library, `NcclError` when they cannot meet.
        """
        self._library = _library()
        self._size = size
        identity = _UniqueId()
        if rank == 0:
            _check(self._library.ncclGetUniqueId(byref(identity)))
            store.set("nccl", bytes(identity).hex())
        identity = _UniqueId.from_buffer_copy(bytes.fromhex(store.get("nccl").decode()))
        self._comm = c_void_p()
        _check(self._library.ncclCommInitRank(byref(self._comm), size, identity, rank))

    def all_reduce(self, tensor: Tensor) -> None:
        data = tensor.data_ptr()
        count, kind = tensor.numel(), TYPES[tensor.dtype]
        _check(self._library.ncclAllReduce(data, data, count, kind, SUM, self._comm, _stream()))

    def all_gather(self, out: Tensor, tensor: Tensor) -> None:
        _check(
            self._library.ncclAllGather(
                tensor.data_ptr(), out.data_ptr(), tensor.nbytes, BYTE, self._comm, _stream()
            )
        )

    def all_to_all(self, out: Tensor, tensor: Tensor) -> None:
        library, comm, stream = self._library, self._comm, _stream()
        part = tensor.nbytes // self._size
        _check(library.ncclGroupStart())
        for peer in range(self._size):
            _check(library.ncclSend(tensor.data_ptr() + peer * part, part, BYTE, peer, comm, stream))
            _check(library.ncclRecv(out.data_ptr() + peer * part, part, BYTE, peer, comm, stream))
        _check(library.ncclGroupEnd())

    def abandon(self) -> None:
        """What runs ends at once; this returns when no CUDA graph with calls of this communicator is left."""
        self.close()

    def close(self) -> None:
        """Abort rather than finish: the other ranks may be gone. Waits as `abandon` does."""
        if self._comm:
            self._library.ncclCommAbort(self._comm)
            self._comm = c_void_p()


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream
