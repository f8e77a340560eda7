"""A sparse mixture of experts (Fedus et al. 2021): each token goes through a few of many gated MLPs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisgl.distributed import Communicator, Division
from minisgl.kernel import kernels_for
from minisgl.layers.matmul import matmul, pack
from minisgl.layers.mlp import silu_and_mul
from minisgl.layers.weights import Piece, parameter, split


class MoE(nn.Module):
    """x [T, hidden] -> this rank's summand of [T, hidden].

    The router is whole on every rank and computes in float32, so that all ranks choose the same experts; every
    expert's intermediate features are split.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        experts_per_token: int,
        norm_topk_prob: bool,
        comm: Communicator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token
        self.norm_topk_prob = norm_topk_prob
        self.span = split(intermediate_size, comm)
        self.router = parameter(num_experts, hidden_size, dtype=dtype)
        self.gate_up = parameter(num_experts, 2 * self.span.size, hidden_size, dtype=dtype)
        self.down = parameter(num_experts, hidden_size, self.span.size, dtype=dtype)
        self._experts: list[tuple[Tensor, Tensor]] = []
        """(gate_up, down) of each expert, set by `pack`."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, hidden] -> weights float32 and experts int64, both [T, experts_per_token]."""
        probabilities = F.linear(x.float(), self.router.float()).softmax(dim=-1)
        weights, experts = probabilities.topk(self.experts_per_token, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x, "moe")
        if kernels is None:
            return self.mixture(x)
        choices, normalize = self.experts_per_token, self.norm_topk_prob
        return kernels.mixture(  # type: ignore[no-any-return]
            x, self.router, self.gate_up, self.down, choices, normalize
        )

    def divided(self, division: Division) -> Tensor:
        """The same for rows that ranks divide: summands of this rank's own."""
        x, arrivals = division.normalized, division.arrivals()
        own = self(x[next(arrivals)])
        for (rank, _), rows in zip(division.others, arrivals, strict=True):
            division.summand(rank).copy_(self(x[rows]))
            division.send(rank)
        return own  # type: ignore[no-any-return]

    def mixture(self, x: Tensor) -> Tensor:
        """The same, expert by expert: the host counts."""
        weights, experts = self.route(x)
        # Row i of `order` is the i-th (token, choice) pair, counted token by token, when sorted by expert.
        order = experts.flatten().argsort(stable=True)
        rows = x[order // self.experts_per_token]
        results = torch.empty_like(rows)
        counts = experts.flatten().bincount(minlength=len(self._experts)).tolist()
        start = 0
        for (gate_up, down), count in zip(self._experts, counts, strict=True):
            if count:
                hidden = silu_and_mul(matmul(rows[start : start + count], gate_up))
                results[start : start + count] = matmul(hidden, down)
                start += count
        choices = torch.empty_like(results)
        choices[order] = results
        mixed = (choices.view(*experts.shape, -1) * weights.unsqueeze(2)).sum(dim=1)
        return mixed.to(x.dtype)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(f"{name}.gate.weight", tuple(self.router.shape), (), self.router)
        hidden_size, part = self.router.shape[1], self.span
        for index, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            expert, wide = f"{name}.experts.{index}", (part.total, hidden_size)
            yield Piece(f"{expert}.gate_proj.weight", wide, (part.slice,), gate_up[: part.size])
            yield Piece(f"{expert}.up_proj.weight", wide, (part.slice,), gate_up[part.size :])
            narrow = (hidden_size, part.total)
            yield Piece(f"{expert}.down_proj.weight", narrow, (slice(None), part.slice), down)

    def pack(self) -> None:
        self._experts = [
            (pack(gate_up), pack(down)) for gate_up, down in zip(self.gate_up, self.down, strict=True)
        ]
        if self._experts[0][0].is_mkldnn:
            del self.gate_up, self.down  # copied; a view on a device where `pack` copies nothing
