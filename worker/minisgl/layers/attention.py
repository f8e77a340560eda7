"""Attention with its projections; the softmax and the KV cache are the backend's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minisgl.attention.base import Attend, Norms, Target
from minisgl.distributed import Communicator, Division
from minisgl.kernel import kernels_for
from minisgl.layers.linear import ColumnLinear, RowLinear
from minisgl.layers.norm import RMSNorm
from minisgl.layers.rotary import rotate
from minisgl.layers.weights import split_heads


class Attention(nn.Module):
    """x [T, hidden] -> this rank's summand of [T, hidden].

    A rank has ``heads / ranks`` query heads. It has ``kv_heads / ranks`` key-value heads or, with more ranks than
    those, the one that its query heads share.
    """

    def __init__(
        self,
        layer: int,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        qk_norm_eps: float | None,
        comm: Communicator,
        dtype: torch.dtype,
    ) -> None:
        """`qk_norm_eps`: normalize each query and key head, with this epsilon, before the rotation."""
        super().__init__()
        self.layer = layer
        self.head_dim = head_dim
        query, key = split_heads(num_heads, head_dim, comm), split_heads(num_kv_heads, head_dim, comm)
        self.heads, self.kv_heads = query.size // head_dim, key.size // head_dim
        self.qkv = ColumnLinear(hidden_size, (query, key, key), bias=qkv_bias, dtype=dtype)
        self.output = RowLinear(query, hidden_size, dtype=dtype)
        self.query_norm = RMSNorm(head_dim, qk_norm_eps, dtype=dtype) if qk_norm_eps is not None else None
        self.key_norm = RMSNorm(head_dim, qk_norm_eps, dtype=dtype) if qk_norm_eps is not None else None

    def forward(self, x: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """`rotation`: `Rotary.at` of the tokens' positions."""
        return self.output(self.mix(self.qkv(x), rotation, attend))  # type: ignore[no-any-return]

    def divided(self, division: Division, rotation: Tensor, attend: Attend) -> Tensor:
        """The same for rows that ranks divide: summands of this rank's own."""
        mixed = self.mix(self.qkv.gathered(division), rotation, attend)
        return self.output.scattered(mixed, division)

    def mix(self, projected: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """Between the projections: [T, (heads + 2 kv_heads) * head_dim] -> [T, heads * head_dim]."""
        heads = projected.view(len(projected), -1, self.head_dim)
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = self.query_norm.weight, self.key_norm.weight, self.query_norm.eps
        mixed = attend.whole(self.layer, heads, norms, rotation)
        if mixed is None:
            query, key, value = self._rotate_and_store(heads, norms, rotation, attend.target(self.layer))
            mixed = attend(self.layer, query, key, value)
        return mixed.flatten(1)

    def _rotate_and_store(
        self, heads: Tensor, norms: Norms | None, rotation: Tensor, target: Target
    ) -> tuple[Tensor, Tensor, Tensor]:
        """heads [T, heads + 2 kv_heads, head_dim] -> query, key, value, the last two stored."""
        kernels = kernels_for(heads)
        if kernels is not None:
            return kernels.rotate_and_store(  # type: ignore[no-any-return]
                heads, self.kv_heads, norms, rotation, target.cache, target.slots
            )
        query_key, value = heads[:, : -self.kv_heads], heads[:, -self.kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query_key[:, : self.heads]), self.key_norm(query_key[:, self.heads :])
            query_key = torch.cat((query, key), dim=1)
        query_key = rotate(query_key, rotation)
        query, key = query_key[:, : self.heads], query_key[:, self.heads :]
        target.store(key, value)
        return query, key, value
