"""What threads do while the engine's own imports Python modules and launches first kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minisgl.kernel import kernels_for

SWITCH_SECONDS = 5e-5
"""How soon such a thread gets the interpreter. One that reads weights needs it twice a chunk, for an instant."""


@contextmanager
def quick_switches() -> Iterator[None]:
    """Within, no thread keeps the interpreter from the others for long."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def wake_libraries(device: torch.device, dtype: torch.dtype, width: int) -> None:
    """Use cuBLAS, and Triton, which reads all of itself once; on vectors of `width`.

    What fails here fails again where it is needed.
    """
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        x = torch.zeros((16, width), dtype=dtype, device=device)
        x @ x.T
        kernels_for(x).add_rms_norm(x[:1], x[1:2], x[0], 1e-6)
