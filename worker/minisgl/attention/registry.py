"""The attention backends by name, and which one a device and a phase get."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Callable
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import NamedTuple

import torch

from minisgl.attention.base import Backend
from minisgl.attention.fused import FusedDecode
from minisgl.attention.paged import PagedAttention
from minisgl.attention.torch_backend import TorchBackend
from minisgl.attention.triton_backend import TritonBackend
from minisgl.kvcache.pool import KVPool
from minisgl.utils.errors import UserError

logger = logging.getLogger("minisgl.attention")

Windows = tuple[int | None, ...]
"""Of each layer: how many tokens a token attends to, itself included. None: all before it."""


def _torch(pool: KVPool, windows: Windows, _num_heads: int) -> Backend:
    return TorchBackend(pool, windows)


def _of_library(module: str, name: str) -> Callable[[KVPool, Windows, int], Backend]:
    """The backend `name` of a module of this package, whose library may be missing."""

    def create(pool: KVPool, windows: Windows, num_heads: int) -> Backend:
        backend: Backend = getattr(importlib.import_module(f"minisgl.attention.{module}"), name)(
            pool, windows, num_heads
        )
        return backend

    return create


BACKENDS: dict[str, Callable[[KVPool, Windows, int], Backend]] = {
    "flashinfer": _of_library("flashinfer_backend", "FlashInferBackend"),
    "flash_attn": _of_library("flash_attn_backend", "FlashAttnBackend"),
    "triton": TritonBackend,
    "torch": _torch,
}

PREFERRED = {
    "prefill": ("flashinfer", "flash_attn", "triton", "torch"),
    "decode": ("triton", "flashinfer", "flash_attn", "torch"),
}
"""Of each phase, the order that "auto" tries them in."""

BUILT_GROUPS = (1, 2, 4, 8)
"""Query heads a key-value head of the decode kernels that the package flashinfer-jit-cache has."""


class Setting(NamedTuple):
    """What a backend must be able to work on."""

    device: torch.device
    dtype: torch.dtype
    page_size: int
    head_dim: int
    query_heads: int
    """A key-value head's."""
    rounds: bool = False
    """Whether the KV pool keeps FP8."""


def choose_attention(names: tuple[str, str], setting: Setting) -> tuple[str, str]:
    """Backends for prefill and for decode. "auto" becomes one that works here, and the log says why.

    Raises `UserError` when one that is asked for by its name is unknown or does not work here.
    """
    chosen = []
    for (phase, order), name in zip(PREFERRED.items(), names, strict=True):
        if name not in ("auto", *BACKENDS):
            raise UserError(f"--attn {name}: this backend is not available; allowed: auto, {', '.join(BACKENDS)}")
        obstacles = {backend: OBSTACLES[backend](setting, phase) for backend in BACKENDS}
        if name == "auto":
            name = next(backend for backend in order if obstacles[backend] is None)
            before = order[: order.index(name)]
            reason = "; ".join(f"not {backend}: {obstacles[backend]}" for backend in before) or "the first choice"
            logger.info("attention backend for %s: %s (%s)", phase, name, reason)
        elif obstacles[name] is not None:
            raise UserError(f"--attn {name}: cannot be used for {phase}: {obstacles[name]}; --attn torch works")
        chosen.append(name)
    return chosen[0], chosen[1]


def _gpu_obstacle(setting: Setting) -> str | None:
    if setting.device.type != "cuda":
        return "it needs a CUDA device"
    if setting.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, not {str(setting.dtype).removeprefix('torch.')}"
    return None


def _flashinfer_obstacle(setting: Setting, phase: str) -> str | None:
    if (obstacle := _gpu_obstacle(setting)) is not None:
        return obstacle
    if find_spec("flashinfer") is None:
        return "the package flashinfer-python is not installed"
    compiler = f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"
    can_build = shutil.which("nvcc") or shutil.which(compiler)
    if not can_build and find_spec("flashinfer_jit_cache") is None:
        return "its kernels are not built (package flashinfer-jit-cache), and there is no nvcc to build them"
    if setting.head_dim not in (64, 128, 256):
        return f"it needs heads of 64, 128 or 256 dimensions, not {setting.head_dim}"
    if phase == "decode":
        if torch.cuda.get_device_capability(setting.device)[0] not in (9, 10, 12):
            return "its decode kernel needs a GPU of the Hopper or Blackwell generation"
        if setting.page_size not in (16, 32, 64, 128):
            return f"its decode kernel needs --page-size 16, 32, 64 or 128, not {setting.page_size}"
        if setting.query_heads > 32:
            return f"its decode kernel needs at most 32 query heads a key-value head, not {setting.query_heads}"
        if not can_build and setting.query_heads not in BUILT_GROUPS:
            return (
                f"its decode kernel for {setting.query_heads} query heads a key-value head is not built "
                f"(flashinfer-jit-cache has those for {', '.join(map(str, BUILT_GROUPS))}), and there is no nvcc"
            )
    return None


def _flash_attn_obstacle(setting: Setting, _phase: str) -> str | None:
    if (obstacle := _gpu_obstacle(setting)) is not None:
        return obstacle
    # The older flash-attn has the same top-level module, and importing that loads its CUDA library.
    if not any(True for _ in distributions(name="flash-attn-4")):
        return "the package flash-attn-4 is not installed (pip install 'flash-attn-4[cu13]')"
    if torch.cuda.get_device_capability(setting.device)[0] != 9:
        return "it needs a GPU of the Hopper generation"
    if setting.rounds:
        return "it does not read --kv-cache-dtype fp8"
    if setting.head_dim not in (64, 128):
        return f"it needs heads of 64 or 128 dimensions, not {setting.head_dim}"
    return None


def _triton_obstacle(setting: Setting, _phase: str) -> str | None:
    if (obstacle := _gpu_obstacle(setting)) is not None:
        return obstacle
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if setting.head_dim not in (64, 128, 256):
        return f"it needs heads of 64, 128 or 256 dimensions, not {setting.head_dim}"
    return None


OBSTACLES: dict[str, Callable[[Setting, str], str | None]] = {
    "flashinfer": _flashinfer_obstacle,
    "flash_attn": _flash_attn_obstacle,
    "triton": _triton_obstacle,
    "torch": lambda _setting, _phase: None,
}
"""Why a backend cannot be used for a phase; None: it can."""


def create_attention(names: tuple[str, str], pool: KVPool, windows: Windows, num_heads: int) -> PagedAttention:
    """Attention with the backends `names`, for prefill and for decode, from `choose_attention`.

    `num_heads`: query heads of this rank.
    """
    made = {name: BACKENDS[name](pool, windows, num_heads) for name in names}
    fused = FusedDecode(pool, windows, num_heads, many=names[1] == "triton") if names[1] != "torch" else None
    setting = Setting(pool.layers[0].device, pool.dtype, pool.page_size, pool.head_dim, num_heads // pool.kv_heads)
    captured = "torch" not in names and _triton_obstacle(setting, "prefill") is None
    chunks = TritonBackend(pool, windows, num_heads) if captured else None
    return PagedAttention(pool, made[names[0]], made[names[1]], fused, chunks)
