"""The decoder-only transformer that every family here is a variant of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from minisgl.attention.base import Attend
from minisgl.distributed import Communicator, Division
from minisgl.layers.attention import Attention
from minisgl.layers.embedding import VocabEmbedding, VocabHead
from minisgl.layers.linear import Linear
from minisgl.layers.mlp import GatedMLP
from minisgl.layers.moe import MoE
from minisgl.layers.norm import RMSNorm
from minisgl.layers.products import Products
from minisgl.layers.rotary import Rotary
from minisgl.models.config import ModelConfig

if TYPE_CHECKING:
    from minisgl.kernel.linear import Weighted


class DecoderLayer(nn.Module):
    """Attention and a feed-forward layer, each normalized before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, comm: Communicator, dtype: torch.dtype) -> None:
        super().__init__()
        self.comm = comm
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.attention = Attention(
            layer,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            qkv_bias=config.qkv_bias,
            qk_norm_eps=config.rms_norm_eps if config.qk_norm else None,
            comm=comm,
            dtype=dtype,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.mlp: GatedMLP | MoE
        if config.is_sparse(layer):
            self.mlp = MoE(
                config.hidden_size,
                config.moe_intermediate_size,
                num_experts=config.num_experts,
                experts_per_token=config.experts_per_token,
                norm_topk_prob=config.norm_topk_prob,
                comm=comm,
                dtype=dtype,
            )
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, comm, dtype=dtype)

    def forward(self, x: Tensor, residual: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden], what the layer before adds to the stream -> what this one adds. Adds x to `residual`.

        Both are this rank's summands: ranks are summed up where the sum is normalized.
        """
        x = self.attention(self.attention_norm.add(x, residual, self.comm), rotation, attend)
        return self.mlp(self.mlp_norm.add(x, residual, self.comm))  # type: ignore[no-any-return]

    def divided(self, x: Tensor, residual: Tensor, rotation: Tensor, attend: Attend, division: Division) -> Tensor:
        """As `forward` for many tokens, whose rows ranks divide: x and `residual` are of this rank's own."""
        self.attention_norm.add_divided(x, residual, division)
        x = self.attention.divided(division, rotation, attend)
        self.mlp_norm.add_divided(x, residual, division)
        return self.mlp.divided(division)

    def few_tokens(
        self, x: Tensor | Weighted, stream: Tensor, rotation: Tensor, attend: Attend, following: RMSNorm | None
    ) -> Tensor | Weighted:
        """The same for few tokens on CUDA, with less around each matrix: adds to `stream` [T, hidden] in place.

        x: the stream, or what the attention's norm has begun with -> what the next layer's, `following`, has.
        """
        attention = self.attention
        projected = attention.qkv.few_tokens(x, self.attention_norm)
        mixed = attention.mix(projected, rotation, attend)
        if not isinstance(self.mlp, GatedMLP):
            attention.output.few_to_stream(mixed, stream, None)
            stream += self.mlp(self.mlp_norm(stream))
            return stream
        x = attention.output.few_to_stream(mixed, stream, self.mlp_norm)
        hidden = self.mlp.gate_up.few_tokens(x, self.mlp_norm, gated=True)
        return self.mlp.down.few_to_stream(hidden, stream, following)


class Transformer(nn.Module):
    """One rank's part of a model. Its weights come from `loader.begin_loading`.

    The KV cache belongs to `attention`, which each call is given; nothing is kept from one call to the next.
    """

    def __init__(self, config: ModelConfig, comm: Communicator, dtype: torch.dtype) -> None:
        """Raises `ModelError` when the model cannot be split over the ranks of `comm`."""
        super().__init__()
        config.check_tensor_parallel(comm.size)
        self.config = config
        self.comm = comm
        vocab_size, hidden_size = config.vocab_size, config.hidden_size
        self.rotary = Rotary(config.rope, config.head_dim, config.max_position)
        self.embedding = VocabEmbedding(vocab_size, hidden_size, comm, dtype=dtype)
        self.layers = nn.ModuleList(DecoderLayer(config, i, comm, dtype) for i in range(config.num_layers))
        self.norm = RMSNorm(hidden_size, config.rms_norm_eps, dtype=dtype)
        self.head = VocabHead(vocab_size, hidden_size, comm, tied=config.tie_embeddings, dtype=dtype)
        self.products: Products | None = None
        self.few = 0
        """Tokens up to which `DecoderLayer.few_tokens` runs."""

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attend) -> Tensor:
        """tokens and positions int64 [T] -> normalized hidden states [T, hidden]. Call in inference mode."""
        rotation = self.rotary.at(positions)
        x = self.embedding(tokens)
        if 0 < len(x) <= self.few:
            begun: Tensor | Weighted = x
            layers = cast("list[DecoderLayer]", list(self.layers))
            norms = [*(layer.attention_norm for layer in layers[1:]), None]
            for each, following in zip(layers, norms, strict=True):
                begun = each.few_tokens(begun, x, rotation, attention, following)
            return self.norm(x)  # type: ignore[no-any-return]
        division = self.comm.divide(len(x))
        if division is not None:
            return self._divided(x, rotation, attention, division)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x = layer(x, residual, rotation, attention)
        return self.norm.add(x, residual, self.comm)

    def _divided(self, x: Tensor, rotation: Tensor, attend: Attend, division: Division) -> Tensor:
        """x [T, hidden], this rank's summands -> what `forward` returns, until the next step that is divided."""
        for rank, rows in division.others:
            division.summand(rank).copy_(x[rows])
            division.send(rank)
        x = x[division.own]
        residual = torch.zeros_like(x)
        for layer in cast("list[DecoderLayer]", list(self.layers)):
            x = layer.divided(x, residual, rotation, attend, division)
        self.norm.add_divided(x, residual, division)
        for _ in division.arrivals():
            pass
        return division.normalized

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, hidden], of the tokens whose successors are wanted -> [S, vocab], the same on every rank."""
        return self.head(hidden)  # type: ignore[no-any-return]

    def columns(self, hidden: Tensor) -> Tensor:
        """The same -> this rank's logits of every row [S, width], whose ranks side by side are all of them."""
        return self.head.columns(hidden)

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """Within, only the first two layers of each kind run, and the last: they set up what all others need.

        Products of a number of tokens that is new are tried in every way.
        """
        layers, config = self.layers, self.config
        kinds: dict[object, list[int]] = {}
        for i in range(len(layers)):
            kinds.setdefault((config.windows[i], config.is_sparse(i)), []).append(i)
        kept = sorted({i for places in kinds.values() for i in (*places[:2], places[-1])})
        self.layers = nn.ModuleList(layers[i] for i in kept)
        try:
            with self.products.tried() if self.products is not None else nullcontext():
                yield
        finally:
            self.layers = layers

    def prepare(self) -> None:
        """Once, when the parameters hold the weights: bring everything into the form that runs fastest."""
        self.rotary.to(self.embedding.weight.device)
        if self.config.tie_embeddings:
            self.head.tie(self.embedding)
        for module in self.modules():
            if isinstance(module, Linear | MoE | VocabHead):
                module.pack()
        if not self.embedding.weight.is_cuda:
            return
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        plain = [linear for linear in linears if linear.scale is None and linear.bias is None]
        if plain and plain[0].weight.itemsize == 2:
            self.products = Products([linear.weight for linear in plain])
            for linear in plain:
                linear.products = self.products
        if self.comm.size == 1:
            sparse = any(isinstance(module, MoE) for module in self.modules())
            self.few = 1 if sparse else min(linear.most_tokens() for linear in linears)
