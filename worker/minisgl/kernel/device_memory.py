"""Memory of a GPU that no tensor keeps."""

from __future__ import annotations

import torch
from torch import Tensor


class _Memory:
    """For `torch.as_tensor` (CUDA Array Interface, version 3)."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (address, False),
        }


def memory_at(address: int, nbytes: int, device: torch.device) -> Tensor:
    """uint8 [nbytes] at `address`, which whoever made it keeps for as long as the tensor is used."""
    return torch.as_tensor(_Memory(address, nbytes), device=device)
