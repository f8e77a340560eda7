"""From logits to tokens, for all rows of a batch at once.

Random numbers come from a counter: the n-th token of a request depends on its seed, on n and on its own logits,
and on nothing else: neither on the rest of the batch nor on what was drawn before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 256
"""Most likely tokens that are ranked at first; more only in rows whose top-p they do not reach."""


class SamplingRows(NamedTuple):
    """Sampling parameters, one element a row: `SamplingParams` as tensors."""

    temperature: Tensor
    """float32, as are `top_p` and `min_p`; 0 is greedy."""
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    """int64, as are `seed` and `generated`; 0 keeps all."""
    seed: Tensor
    generated: Tensor
    """Tokens sampled so far: the random counter."""

    @staticmethod
    def zeros(num_rows: int, device: torch.device) -> SamplingRows:
        shape = torch.zeros((3, num_rows), dtype=torch.float32, device=device)
        counts = torch.zeros((3, num_rows), dtype=torch.int64, device=device)
        return SamplingRows(*shape, *counts)

    def at(self, rows: Tensor) -> SamplingRows:
        """The parameters of `rows`, int64 [S]."""
        return SamplingRows(*(column.index_select(0, rows) for column in self))

    def write(self, rows: Tensor, shape: Tensor, counts: Tensor) -> None:
        """Set those of `rows`, int64 [J].

        shape [J, 3]: temperature, top-p, min-p. counts [J, 3]: top-k, seed, tokens generated.
        """
        for target, values in zip(self, (*shape.T, *counts.T), strict=True):
            target.index_copy_(0, rows, values)


def greedy(logits: Tensor) -> Tensor:
    """logits [S, vocab] -> int64 [S]: the largest; of equal ones, any, but the same one every time."""
    return logits.argmax(dim=-1)


def sample(logits: Tensor, params: SamplingRows, *, ranked: bool, largest_top_k: int) -> Tensor:
    """logits [S, vocab], params [S] -> int64 [S].

    `ranked`: some row has a top-k or a top-p; `largest_top_k` is the largest of them. A token that is as likely as
    the least likely one kept is kept too.
    """
    best = greedy(logits)
    # The largest logit becomes 0 before the division: a tiny temperature leads to -inf elsewhere, never to NaN.
    temperature = params.temperature.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    scores = (logits.float() - logits.gather(1, best.unsqueeze(1))).div_(temperature)
    probability = scores.softmax(dim=-1)
    threshold = params.min_p.unsqueeze(1) * probability.amax(dim=-1, keepdim=True)
    if ranked:
        top_k = torch.where(params.top_k > 0, params.top_k, logits.shape[1]).unsqueeze(1)
        width = max(CANDIDATES, largest_top_k)
        threshold = threshold.maximum(_ranked_threshold(probability, top_k, params.top_p.unsqueeze(1), width))
    kept = torch.ge(probability, threshold, out=scores)
    cumulated = probability.mul_(kept).cumsum_(dim=-1)
    # The draw is below 1 by at least a rounding error: below the last sum, so never on a token that was dropped.
    draw = uniform(params.seed, params.generated).unsqueeze(1) * cumulated[:, -1:]
    drawn = torch.searchsorted(cumulated, draw, right=True).squeeze(1)
    return torch.where((params.temperature == 0) | (params.top_k == 1), best, drawn)


def _ranked_threshold(probability: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> Tensor:
    """The least probability [S, 1] that top-k and then top-p keep; 0 in rows with neither.

    probability [S, vocab]; top_k [S, 1], the vocabulary's size where it is off; top_p [S, 1]. Looks at the `width`
    most likely tokens, which are at least `top_k` where it is on, and at more in the rows that need more.
    """
    vocab = probability.shape[1]
    width = min(width, vocab)
    values = probability.topk(width, dim=-1).values  # descending
    ranked = values.double().masked_fill_(torch.arange(width, device=values.device) >= top_k, 0)
    cumulated = ranked.cumsum(dim=-1)
    total = torch.where(top_k < vocab, cumulated[:, -1:], 1.0)
    wanted = torch.where(top_p < 1, top_p * total, torch.inf)
    # A token is kept when those before it have not reached the wanted share.
    kept = ((cumulated - ranked < wanted) & (ranked > 0)).sum(dim=-1, keepdim=True)
    unranked = (top_k >= vocab) & (top_p >= 1)
    least = values.gather(1, kept.clamp_min(1) - 1).masked_fill_(unranked, 0)
    short = ((kept == width) & (top_k > width) & ~unranked).squeeze(1)
    if width < vocab and short.any():
        rows = short.nonzero().squeeze(1)
        least[rows] = _ranked_threshold(probability[rows], top_k[rows], top_p[rows], 16 * width)
    return least


def uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """seed and counter int64 -> float32 in [0, 1), in steps of ``2 ** -24``.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17), started
    at the mixed seed and advanced `counter` times in one multiplication.
    """
    state = _mix(seed) + (counter + 1) * _GOLDEN
    return _shift(_mix(state), 40).float() * 2.0**-24


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit integer, as are the factors below


def _mix(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64: each bit of z changes about half of the bits of the result."""
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros, as unsigned integers do."""
    return z >> bits & ((1 << (64 - bits)) - 1)
