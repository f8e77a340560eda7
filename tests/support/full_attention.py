"""Attention without a KV cache, written out: what the paged backends are compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minisgl.attention.base import Norms, Target
from minisgl.distributed import Communicator
from minisgl.models.checkpoint import inspect
from support.division import Dividing
from support.loading import load_model


class Nowhere(Target):
    def store(self, key: Tensor, value: Tensor) -> None:
        pass


class FullAttention:
    """Causal attention over one whole sequence that is passed in a single step."""

    def __init__(self, windows: tuple[int | None, ...]) -> None:
        self.windows = windows

    def whole(self, layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> None:
        """Rotation and storing are the layer's."""

    def target(self, layer: int) -> Target:  # noqa: ARG002  nothing is kept
        return Nowhere(torch.empty(0), torch.empty(0))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [T, heads, head_dim], key and value [T, kv_heads, head_dim] -> [T, heads, head_dim]."""
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[2] ** -0.5
        position = torch.arange(len(query))
        distance = position[:, None] - position[None, :]
        window = self.windows[layer] or len(query)
        visible = (distance >= 0) & (distance < window)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, value)


def full_logits(
    comm: Communicator,
    path: Path,
    tokens: list[int],
    dtype: torch.dtype = torch.float32,
    *,
    divided: bool = False,
) -> Tensor:
    """float32 [T, vocab]: the logits that the model in directory `path` gives to each of `tokens`, on the CPU.

    `divided`: ranks divide the tokens' hidden states among them.
    """
    config = inspect(path)
    model = load_model(config, path, comm, device=torch.device("cpu"), dtype=dtype)
    if divided:
        model.comm = Dividing(comm, config.hidden_size)
    with torch.inference_mode():
        hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), FullAttention(config.windows))
        return model.logits(hidden).float()


def full_logits_of_each(
    comm: Communicator, directory: Path, names: list[str], tokens: list[int], divided: bool = False
) -> dict[str, list[list[float]]]:
    """`full_logits` of each of the models in `directory`, for `run_ranks`."""
    return {name: full_logits(comm, directory / name, tokens, divided=divided).tolist() for name in names}
