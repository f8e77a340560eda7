"""Our own GPU kernels, in Triton. Each does what some lines of torch elsewhere do, which are its reference."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def kernels_for(x: Tensor, room: str = "layers") -> Any:
    """The module ``minisgl.kernel.<room>`` when `x` is on a CUDA device; None elsewhere: use the torch reference.

    Imported at the first use: Triton comes with CUDA builds of torch only.
    """
    return _load(room) if x.is_cuda else None


@cache
def _load(room: str) -> Any:
    return importlib.import_module(f"minisgl.kernel.{room}")
