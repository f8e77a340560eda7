"""Memory of a GPU that the other processes of this host map: CUDA's interprocess communication.

By the driver's own interface (CUDA Driver API, "Memory Management": cuIpcGetMemHandle, cuIpcOpenMemHandle), since
torch shares only what its allocator has made, and not in every setting.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

import torch
from torch import Tensor

from minisgl.kernel.device_memory import memory_at
from minisgl.utils.cuda_driver import load_driver

LAZY_ENABLE_PEER_ACCESS = 1
"""The only flag of cuIpcOpenMemHandle, which asks for it."""


NATIVE_ATOMICS = 3
"""CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED."""


class CannotShareError(RuntimeError):
    """This GPU cannot share memory, or cannot map another's."""


class _Handle(ctypes.Structure):
    _fields_ = (("data", c_char * 64),)


class SharedMemory:
    """Zeros on a GPU that other processes can map, and those of theirs that this one maps."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        """Raises `CannotShareError`."""
        torch.cuda.synchronize(device)  # the driver's calls need a context, which this makes current here
        self._context = c_void_p()
        call_driver("cuCtxGetCurrent", byref(self._context))
        self._device = device
        self._nbytes = nbytes
        self._mapped: list[c_uint64] = []
        self._own = c_uint64()
        call_driver("cuMemAlloc_v2", byref(self._own), c_size_t(nbytes))
        handle = _Handle()
        try:
            call_driver("cuMemsetD8_v2", self._own, 0, c_size_t(nbytes))
            call_driver("cuCtxSynchronize")
            call_driver("cuIpcGetMemHandle", byref(handle), self._own)
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
        call_driver("cuIpcOpenMemHandle_v2", byref(address), given, c_uint(LAZY_ENABLE_PEER_ACCESS))
        self._mapped.append(address)
        return address.value

    def tensor(self) -> Tensor:
        """This process's own memory, uint8 [nbytes]: until `close`."""
        return memory_at(self.address, self._nbytes, self._device)

    def fill(self, byte: int, start: int, count: int) -> None:
        """In any thread, whatever kernels run: set `count` bytes of this process's own memory, from `start` on."""
        call_driver("cuCtxSetCurrent", self._context)
        call_driver("cuMemsetD8_v2", c_uint64(self.address + start), byte, c_size_t(count))

    def close(self) -> None:
        """Give everything back, as far as the device still can. It must have done what was queued for it."""
        with suppress(CannotShareError):
            while self._mapped:
                call_driver("cuIpcCloseMemHandle", self._mapped.pop())
            if self._own:
                call_driver("cuMemFree_v2", self._own)
        self._own = c_uint64()


def check_link(device: int, other: int) -> None:
    """Raise `CannotShareError` unless kernels of `device` can do atomics in memory of `other`, as over NVLink."""
    able = c_int()
    call_driver("cuDeviceGetP2PAttribute", byref(able), NATIVE_ATOMICS, device, other)
    if not able.value:
        raise CannotShareError(f"no atomic operations in the memory of GPU {other}")


def call_driver(name: str, *arguments: object) -> None:
    """Raises `CannotShareError` with the driver's reason."""
    driver = load_driver()
    if driver is None:
        raise CannotShareError("there is no CUDA driver")
    result = getattr(driver, name)(*arguments)
    if result:
        text = c_char_p()
        driver.cuGetErrorString(result, byref(text))
        raise CannotShareError(f"{name}: {(text.value or b'unknown error').decode()}")
