"""Programmatic dependent launch: a kernel is set up on the GPU while the one before it still runs.

A small kernel takes about as long to start as to run. From Hopper on it may start early, and waits before it
touches memory that an earlier kernel writes (CUDA C++ Programming Guide, "Programmatic Dependent Launch").
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def early() -> bool:
    """Whether the current device can: what every kernel here takes as `early`, and its launch as `launch_pdl`."""
    return torch.cuda.get_device_capability()[0] >= 9


@triton.jit
def begin(early: tl.constexpr):
    """Let the next kernel start, then wait until all that earlier kernels wrote can be read.

    Every kernel calls it, also one that needs nothing of the kernel before: the next one relies on it.
    """
    if early:
        gdc_launch_dependents()
        gdc_wait()
