"""The two ends of a model, both split by the vocabulary: tokens to vectors, vectors to logits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisgl.distributed import Communicator
from minisgl.kernel import kernels_for
from minisgl.layers.matmul import matmul, pack
from minisgl.layers.weights import Piece, parameter, split


class VocabEmbedding(nn.Module):
    """tokens int64 [T] -> this rank's summand of [T, hidden]: the rows of its own tokens, zeros elsewhere."""

    def __init__(self, vocab_size: int, hidden_size: int, comm: Communicator, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.comm = comm
        self.span = split(vocab_size, comm)
        self.weight = parameter(self.span.size, hidden_size, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        kernels = kernels_for(tokens)
        if kernels is not None:
            return kernels.gather(self.weight, tokens, first=self.span.start)  # type: ignore[no-any-return]
        if self.comm.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.span.start
        elsewhere = (local < 0) | (local >= self.span.size)
        rows = F.embedding(local.masked_fill_(elsewhere, 0), self.weight)
        return rows.masked_fill_(elsewhere.unsqueeze(1), 0)

    def pieces(self, name: str) -> Iterator[Piece]:
        shape = (self.span.total, self.weight.shape[1])
        yield Piece(f"{name}.weight", shape, (self.span.slice,), self.weight)


class VocabHead(nn.Module):
    """hidden [S, hidden] -> logits [S, vocab], the same on every rank; or, as `columns`, a part on each."""

    def __init__(
        self, vocab_size: int, hidden_size: int, comm: Communicator, *, tied: bool, dtype: torch.dtype
    ) -> None:
        """`tied`: the weight is an embedding's, given later by `tie`."""
        super().__init__()
        self.comm = comm
        self.span = split(vocab_size, comm)
        self.widest = -(-vocab_size // comm.size)
        self.weight = parameter(0 if tied else self.span.size, hidden_size, dtype=dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.comm.all_gather(self.columns(hidden), dim=1)[:, : self.span.total]

    def columns(self, hidden: Tensor) -> Tensor:
        """This rank's logits [S, widest]. The last ranks may have fewer: what fills them up is never chosen."""
        logits = matmul(hidden, self.weight)
        missing = self.widest - self.span.size
        return F.pad(logits, (0, missing), value=-math.inf) if missing else logits

    def pieces(self, name: str) -> Iterator[Piece]:
        shape = (self.span.total, self.weight.shape[1])
        yield Piece(f"{name}.weight", shape, (self.span.slice,), self.weight)

    def tie(self, embedding: VocabEmbedding) -> None:
        """Use the embedding's rows. Where `pack` makes a copy, the embedding keeps its own."""
        self.weight = embedding.weight

    def pack(self) -> None:
        self.weight = nn.Parameter(pack(self.weight), requires_grad=False)
