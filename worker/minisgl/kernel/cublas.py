"""Matrix products by cuBLASLt with an algorithm of one's choice (cuBLAS Library, "Using the cuBLASLt API").

torch takes the one that a heuristic puts first. For tens or hundreds of tokens another of those that it names is
sometimes faster, as how a matrix is cut into tiles decides how many multiprocessors have work.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, pointer
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 16
"""Algorithms that are asked for."""
WORKSPACE = 32 << 20
"""Bytes that an algorithm may use beside its result."""
ALIGNMENT = 256
"""Bytes: of all matrices, as the heuristic takes for granted."""

FLOAT32, KINDS = 0, {torch.float16: 2, torch.bfloat16: 14}
"""cudaDataType_t."""
COMPUTE_FLOAT32 = 68
"""cublasComputeType_t."""
TRANSPOSE_A, TRANSPOSED = 3, 1
"""cublasLtMatmulDescAttributes_t; cublasOperation_t."""
MOST_WORKSPACE, REDUCTIONS = 1, 3
"""cublasLtMatmulPreferenceAttributes_t."""
PRECISE = 3
"""Bits of cublasLtReductionScheme_t: parts are not summed in the result's own type."""


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Found(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Plan(NamedTuple):
    """How to multiply so many tokens by a matrix of one shape."""

    algorithm: _Algorithm
    layouts: tuple[c_void_p, c_void_p, c_void_p]
    """Of the matrix, the tokens and the result, which the library sees transposed: it counts columns first."""


class CublasLt:
    """The library on one device. What it gives out is valid for as long as this is."""

    def __init__(self, device: torch.device) -> None:
        """Raises `OSError` where the library that torch was built with is not to be found."""
        major = (torch.version.cuda or "").partition(".")[0]
        self._library = ctypes.CDLL(f"libcublasLt.so.{major}")
        self._handle, self._product, self._preference = c_void_p(), c_void_p(), c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._call("cublasLtMatmulDescCreate", byref(self._product), COMPUTE_FLOAT32, FLOAT32)
        transposed = byref(c_int32(TRANSPOSED)), c_size_t(4)
        self._call("cublasLtMatmulDescSetAttribute", self._product, TRANSPOSE_A, *transposed)
        self._call("cublasLtMatmulPreferenceCreate", byref(self._preference))
        for name, value in ((MOST_WORKSPACE, c_uint64(WORKSPACE)), (REDUCTIONS, c_uint32(PRECISE))):
            given = byref(value), c_size_t(ctypes.sizeof(value))
            self._call("cublasLtMatmulPreferenceSetAttribute", self._preference, name, *given)
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
        self._one, self._zero = c_float(1), c_float(0)

    def plans(self, tokens: int, weight: Tensor) -> list[Plan]:
        """What the heuristic names for x [tokens, in], weight [out, in] of 16 bits: the likeliest first."""
        (features, size), kind = weight.shape, KINDS[weight.dtype]
        layouts = tuple(
            self._layout(kind, rows, columns)
            for rows, columns in ((size, features), (size, tokens), (features, tokens))
        )
        found, count = (_Found * MOST)(), c_int()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._product, *layouts, layouts[2], self._preference,
            MOST, found, byref(count),
        )  # fmt: skip
        return [
            Plan(one.algorithm, layouts)  # type: ignore[arg-type]
            for one in found[: count.value]
            if one.state == 0
        ]

    def linear(self, x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
        """x [tokens, in], weight [out, in], of the plan's shapes and type and contiguous -> x W^T."""
        out = x.new_empty((len(x), len(weight)))
        matrix, tokens, result = plan.layouts
        stream = torch.cuda.current_stream().cuda_stream
        self._call(
            "cublasLtMatmul", self._handle, self._product, byref(self._one), c_void_p(weight.data_ptr()), matrix,
            c_void_p(x.data_ptr()), tokens, byref(self._zero), c_void_p(out.data_ptr()), result,
            c_void_p(out.data_ptr()), result, pointer(plan.algorithm), c_void_p(self._workspace.data_ptr()),
            c_size_t(WORKSPACE), c_void_p(stream),
        )  # fmt: skip
        return out

    def _layout(self, kind: int, rows: int, columns: int) -> c_void_p:
        layout = c_void_p()
        sizes = c_uint64(rows), c_uint64(columns), c_int64(rows)
        self._call("cublasLtMatrixLayoutCreate", byref(layout), kind, *sizes)
        return layout

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: cuBLAS status {status}")
