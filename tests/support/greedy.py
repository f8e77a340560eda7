"""Greedy text as `transformers` gives it, one prompt at a time, and how to compare with it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

TIE = 1e-3
"""Logits closer than this in float32 are a tie: either token is right."""

CACHE = Path(__file__).parent.parent.parent / ".cache" / "greedy"
"""References of earlier runs: `transformers` takes a minute for what is then compared in seconds."""


class Reference(msgspec.Struct, frozen=True):
    """The greedy continuation of one prompt."""

    prompt: list[int]
    tokens: list[int]
    """Generated tokens; the last may be an end of sequence."""
    gaps: list[float]
    """For each generated token, how far its logit is above the next best."""

    def agrees(self, tokens: list[int]) -> bool:
        """Whether `tokens` are the same, or part from these at a tie."""
        for ours, theirs, gap in zip(self.tokens, tokens, self.gaps, strict=False):
            if ours != theirs:
                return gap < TIE
        return len(self.tokens) == len(tokens)

    def certain_tokens(self) -> list[int]:
        """The tokens before the first tie."""
        first = next((i for i, gap in enumerate(self.gaps) if gap < TIE), len(self.tokens))
        return self.tokens[:first]


def greedy_references(
    model: Path, prompts: list[list[int]], max_tokens: int, *, ignore_eos: bool = False
) -> list[Reference]:
    """Each prompt continued by `transformers` in float32, alone, with its KV cache.

    Kept for the same weights, versions and arguments; the weights are told by their first and last bytes.
    """
    weights = model / "model.safetensors"
    with weights.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, weights.stat().st_size - (1 << 20)))
        key = [head, file.read(), (model / "config.json").read_bytes()]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    arguments = msgspec.msgpack.encode([*key, versions, weights.stat().st_size, prompts, max_tokens, ignore_eos])
    kept = CACHE / f"{hashlib.sha256(arguments).hexdigest()[:32]}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=list[Reference])
    references = _generate(model, prompts, max_tokens, ignore_eos=ignore_eos)
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(references))
    unfinished.rename(kept)
    return references


def _generate(path: Path, prompts: list[list[int]], max_tokens: int, *, ignore_eos: bool) -> list[Reference]:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    if ignore_eos:
        model.generation_config.eos_token_id = None
    references = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        top = torch.cat(out.logits).topk(2).values
        tokens = out.sequences[0, len(prompt) :].tolist()
        references.append(Reference(prompt, tokens, (top[:, 0] - top[:, 1]).tolist()))
    return references
