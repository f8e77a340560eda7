"""Which checkpoint tensor belongs to which parameter: the names that `transformers` gives them."""

from __future__ import annotations

from collections.abc import Iterator

from minisgl.layers.weights import Piece
from minisgl.models.transformer import DecoderLayer, Transformer


def pieces(model: Transformer) -> Iterator[Piece]:
    """What this rank reads of a checkpoint, and where to."""
    yield from model.embedding.pieces("model.embed_tokens")
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        yield from _layer_pieces(layer, f"model.layers.{index}")
    yield from model.norm.pieces("model.norm")
    if not model.config.tie_embeddings:
        yield from model.head.pieces("lm_head")


def is_redundant(name: str, model: Transformer) -> bool:
    """Whether a checkpoint may hold tensor `name` without it being read: what other parameters determine."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and model.config.tie_embeddings)


def _layer_pieces(layer: DecoderLayer, name: str) -> Iterator[Piece]:
    attention = layer.attention
    yield from layer.attention_norm.pieces(f"{name}.input_layernorm")
    yield from attention.qkv.pieces(*(f"{name}.self_attn.{part}_proj" for part in "qkv"))
    if attention.query_norm is not None and attention.key_norm is not None:
        yield from attention.query_norm.pieces(f"{name}.self_attn.q_norm")
        yield from attention.key_norm.pieces(f"{name}.self_attn.k_norm")
    yield from attention.output.pieces(f"{name}.self_attn.o_proj")
    yield from layer.mlp_norm.pieces(f"{name}.post_attention_layernorm")
    yield from layer.mlp.pieces(f"{name}.mlp")
