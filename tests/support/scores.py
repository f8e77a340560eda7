"""Log-probabilities that an engine on a GPU gives to the tokens of texts: what its rounding is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisgl.core.batch import Batch, Join, PageWrite, PrefillChunk
from minisgl.core.config import EngineConfig
from minisgl.core.sampling import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.models.config import ModelConfig

PAGE_SIZE = 16


def scores(path: Path, texts: list[list[int]], *, chunks: tuple[int, ...], **options: Any) -> Tensor:
    """float32 [texts, length - 1, vocab]: log-probabilities of what follows each token but the last.

    `texts` are equally long, one or more. Their first ``sum(chunks)`` tokens are read in chunks of these lengths,
    all texts together; the others one a step, as if they had been generated. In bfloat16.
    """
    rows, length = range(len(texts)), len(texts[0])
    pages = -(-length // PAGE_SIZE)
    config = EngineConfig(
        model_path=str(path), device="cuda", dtype="bfloat16", page_size=PAGE_SIZE, num_pages=pages * len(texts),
        max_running_requests=len(texts), cuda_graph_max_batch=0, **options,
    )  # fmt: skip
    engine = Engine(config, ModelConfig.load(path))
    torch.cuda.synchronize()
    results: list[Tensor] = []

    def run(batch: Batch) -> None:
        engine._rows.update(batch)
        step = engine._rows.lay_out(batch)
        hidden = engine._model(step.tokens, step.positions, engine._attention.plan(step.metadata))
        logits = engine._model.logits(hidden)
        results.append(logits.float().log_softmax(-1).view(len(texts), -1, logits.shape[1]))

    with torch.inference_mode():
        engine._rows.update(
            Batch(
                joined=[Join(row, SamplingParams(temperature=0.0), 0) for row in rows],
                pages=[PageWrite(row, 0, list(range(row * pages, (row + 1) * pages))) for row in rows],
            )
        )
        start = 0
        for count in chunks:
            parts = [PrefillChunk(row, start, texts[row][start : start + count], sample=True) for row in rows]
            run(Batch(prefill=parts))
            start += count
        for position in range(start, length):
            engine._rows.last_tokens[: len(texts)] = torch.tensor([text[position] for text in texts])
            run(Batch(decode_rows=list(rows), decode_lengths=[position + 1] * len(texts)))
    engine.close()
    return torch.cat(results, dim=1)[:, :-1]


class Difference(NamedTuple):
    """How far log-probabilities are from what they should be."""

    mean: float
    """Of the absolute differences, over the texts' own tokens."""
    loss: float
    """What the texts' tokens lose on average, in nats: the logarithm of the perplexities' ratio."""
    agreement: float
    """Share of the places where the likeliest token is the same."""


def difference(ours: Tensor, reference: Tensor, texts: list[list[int]]) -> Difference:
    """Both [texts, length - 1, vocab]."""
    follow = torch.tensor([text[1:] for text in texts], device=ours.device).unsqueeze(2)
    lost = (reference.gather(2, follow) - ours.gather(2, follow)).squeeze(2)
    agree = ours.argmax(dim=2) == reference.argmax(dim=2)
    return Difference(float(lost.abs().mean()), float(lost.mean()), float(agree.float().mean()))
