"""Memory of a GPU that the other processes of this host map: CUDA's interprocess communication.

By the driver's own interface (CUDA Driver API, "Memory Management": cuIpcGetMemHandle, cuIpcOpenMemHandle), since
torch shares only what its allocator has made, and not in every setting.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_char_p, c_size_t, c_uint, c_uint64

import torch
from torch import Tensor

from minisgl.kernel.device_memory import memory_at
from minisgl.utils.cuda_driver import load_driver

LAZY_ENABLE_PEER_ACCESS = 1
"""The only flag of cuIpcOpenMemHandle, which asks for it."""


class CannotShareError(RuntimeError):
    """This GPU cannot share memory, or cannot map another's."""


class _Handle(ctypes.Structure):
    _fields_ = (("data", c_char * 64),)


class SharedMemory:
    """Zeros on a GPU that other processes can map, and those of theirs that this one maps."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        """Raises `CannotShareError`."""
        torch.cuda.synchronize(device)  # the driver's calls need a context
        self._device = device
        self._nbytes = nbytes
        self._mapped: list[c_uint64] = []
        self._own = c_uint64()
        _call("cuMemAlloc_v2", byref(self._own), c_size_t(nbytes))
        handle = _Handle()
        try:
            _call("cuMemsetD8_v2", self._own, 0, c_size_t(nbytes))
            _call("cuCtxSynchronize")
            _call("cuIpcGetMemHandle", byref(handle), self._own)
        except CannotShareError:
            self.close()
            raise
        self.address = self._own.value
        self.handle = bytes(handle)
        """For `map` of another process."""

    def map(self, handle: bytes) -> int:
        """Where another process's memory now is for this device. Raises `CannotShareError`."""
        address = c_uint64()
        given = _Handle.from_buffer_copy(handle)
        _call("cuIpcOpenMemHandle_v2", byref(address), given, c_uint(LAZY_ENABLE_PEER_ACCESS))
        self._mapped.append(address)
        return address.value

    def tensor(self) -> Tensor:
        """This process's own memory, uint8 [nbytes]: until `close`."""
        return memory_at(self.address, self._nbytes, self._device)

    def fill(self, byte: int, count: int) -> None:
        """Set the first `count` bytes of this process's own memory, whatever kernels are running."""
        with torch.cuda.device(self._device):
            _call("cuMemsetD8_v2", self._own, byte, c_size_t(count))

    def close(self) -> None:
        """Give everything back. The device must have done what was queued for it."""
        for address in self._mapped:
            _call("cuIpcCloseMemHandle", address)
        self._mapped.clear()
        if self._own:
            _call("cuMemFree_v2", self._own)
            self._own = c_uint64()


def _call(name: str, *arguments: object) -> None:
    driver = load_driver()
    if driver is None:
        raise CannotShareError("there is no CUDA driver")
    result = getattr(driver, name)(*arguments)
    if result:
        text = c_char_p()
        driver.cuGetErrorString(result, byref(text))
        raise CannotShareError(f"{name}: {(text.value or b'unknown error').decode()}")
