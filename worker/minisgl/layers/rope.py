"""Which rotary position embedding a model has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["default", "linear", "llama3", "yarn"]

ROPE_TYPES: tuple[RopeType, ...] = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and how its frequencies are scaled for long contexts."""

    type: RopeType = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    """Context extension, of every type but default."""
    original_max_position: int = 0
    """Context length before the extension, of llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """Bounds of llama3's interpolated band, in wavelengths per original context."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """Bounds of yarn's interpolated band, in rotations per original context."""
    truncate: bool = True
    """Round yarn's band outwards to whole dimensions."""
    attention_factor: float = 1.0
    """Yarn multiplies cosines and sines by this (Peng et al. 2023, section 3.4)."""
