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
def let_next_start(early: tl.constexpr):
    """Let the next kernel start. Every kernel calls it and `wait_for_earlier`: the next one relies on both."""
    if early:
        gdc_launch_dependents()


@triton.jit
def wait_for_earlier(early: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read.

    Before it only weights may be read, and what was written before the newest kernel that began apart: one of a
    library, and `gather` if it is told to, begins when all before it have ended, and those behind it when it has
    begun.
    """
    if early:
        gdc_wait()


@triton.jit
def begin(early: tl.constexpr):
    """Both, for a kernel that has nothing to read before."""
    let_next_start(early)
    wait_for_earlier(early)


@triton.jit
def fetch(start, size: tl.constexpr):
    """Ask for `size` bytes from each pointer of `start` to be in the L2 cache; both are multiples of 16 bytes."""
    sizes = tl.full(start.shape, size, tl.int32)
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }", "=r,l,r", [start.to(tl.int64), sizes],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
