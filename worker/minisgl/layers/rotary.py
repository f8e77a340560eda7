"""Rotary position embedding (Su et al. 2021), with the frequency scalings that the model families ship."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisgl.kernel import kernels_for
from minisgl.layers.rope import RopeConfig


class Rotary:
    """Cosines and sines by position, in float32.

    Dimension i of a head is paired with dimension ``i + head_dim / 2``; the pair is turned by ``position * f_i``.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, max_position: int) -> None:
        positions = torch.arange(max_position, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        self.table = torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)
        """[positions, 2, head_dim]: cosines; sines, negated in the first half."""

    def to(self, device: torch.device) -> None:
        self.table = self.table.to(device)

    def at(self, positions: Tensor) -> Tensor:
        """positions int64 [T] -> float32 [T, 2, head_dim], for `rotate`.

        The kernels of attention rely on it to begin when all before it have ended (`minisgl.kernel.launch`).
        """
        kernels = kernels_for(positions)
        if kernels is not None:
            rows = kernels.gather(self.table.flatten(1), positions, apart=True)
            return rows.view(-1, *self.table.shape[1:])  # type: ignore[no-any-return]
        return self.table[positions]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [T, heads, head_dim] turned by `rotation`, from `Rotary.at`; a new contiguous tensor of x's type."""
    cos, sin = rotation[:, :1], rotation[:, 1:]
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos).addcmul_(swapped, sin).to(x.dtype)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """float32 [head_dim / 2]: radians per position of each pair of dimensions."""
    default = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    match rope.type:
        case "default":
            return default
        case "linear":
            return default / rope.factor
        case "llama3":
            return _llama3(default, rope)
        case "yarn":
            return _yarn(default, rope, head_dim)


def _llama3(default: Tensor, rope: RopeConfig) -> Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between interpolated (Llama 3.1)."""
    wavelengths_per_context = rope.original_max_position * default / (2 * math.pi)
    kept = (wavelengths_per_context - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * default / rope.factor + kept * default


def _yarn(default: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """NTK-by-parts interpolation (Peng et al. 2023, section 3.2)."""

    def dimension(rotations: float) -> float:
        """The pair of dimensions that turns this often within the original context."""
        per_turn = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(per_turn) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return (1 - kept) * default / rope.factor + kept * default
