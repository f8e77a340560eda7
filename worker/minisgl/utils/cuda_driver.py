"""The CUDA driver without torch, whose import alone takes seconds."""

from __future__ import annotations

import ctypes


def load_driver() -> ctypes.CDLL | None:
    """The driver, initialized, which takes a while the first time in a process. None where it does not work."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None
