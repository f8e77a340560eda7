"""How the next token of a request is chosen, and when the request ends."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one request, in the field's usual names.

    The logits are changed in the order logit bias, penalties, grammar; then the filters apply in the order
    temperature, top-k, top-p, min-p, as in vLLM and SGLang.
    """

    max_tokens: int | None = None
    """Most tokens to generate. None: as many as the context length leaves."""
    temperature: float = 1.0
    """0 is greedy: the largest logit, and the other parameters of this class that shape the choice are off."""
    top_k: int = 0
    """Keep the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p (nucleus sampling, Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the most likely token's probability (Nguyen et al. 2024)."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time that it was generated before."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens in the prompt or the answer are divided by it, negative ones multiplied
    (Keskar et al. 2019, section 4.1)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    grammar: str = ""
    """What the text must match, as `minisgl.grammar` writes it. Empty: anything."""
    logprobs: int | None = None
    """Log-probabilities of each generated token and of this many most likely ones, from the model's own logits:
    before bias, penalties, grammar and temperature. None: of none."""
    prompt_logprobs: bool = False
    """Also those of the prompt's tokens but the first; needs `logprobs`."""
    seed: int | None = None
    """63 bits. Equal seeds give equal tokens, whatever else is in the batch. None: drawn when accepted."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings, which is never part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the request besides the model's end-of-sequence ids."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence ids."""

    @property
    def penalized(self) -> bool:
        """The choice depends on which tokens there are already."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def shaped(self) -> bool:
        """The logits are changed before the choice."""
        return bool(self.penalized or self.logit_bias or self.grammar)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1
