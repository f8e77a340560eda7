"""What the machine has, asked without torch, whose import alone takes seconds."""

from __future__ import annotations

import ctypes
from importlib import metadata


def count_cuda_devices() -> int:
    """CUDA devices that this process may use, as the driver counts them: CUDA_VISIBLE_DEVICES is obeyed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def torch_has_cuda() -> bool:
    """Whether the installed torch is not a build for CPUs alone, whose version ends in ``+cpu``."""
    try:
        return not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
