"""What the machine has, asked without torch, whose import alone takes seconds."""

from __future__ import annotations

import ctypes
from importlib import metadata

from minisgl.utils.cuda_driver import load_driver


def count_cuda_devices() -> int:
    """CUDA devices that this process may use, as the driver counts them: CUDA_VISIBLE_DEVICES is obeyed."""
    driver = load_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def torch_has_cuda() -> bool:
    """Whether the installed torch is not a build for CPUs alone, whose version ends in ``+cpu``."""
    try:
        return not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
