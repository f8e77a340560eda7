"""One step of the engine, as plain data: what the scheduler decides and an executor carries out.

The device keeps, for each row of the request table, a block table (the row's pages), the number of tokens in
the KV cache, the last token, and the sampling parameters. A batch therefore says only what *changes*: rows that
join, pages handed out, prompt tokens to read. A steady decode step is a list of rows and nothing else, and even
that list is the same object as the step before when no request joined or left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from minisgl.core.sampling import SamplingParams


class Join(NamedTuple):
    """`row` now belongs to a new request: its sampling state starts afresh."""

    row: int
    params: SamplingParams
    generated: int
    """Tokens generated before (a retracted request comes back with some): the random counter goes on from here."""
    tokens: list[int] = []  # noqa: RUF012 (the default of a named tuple is never changed)
    """The prompt, then the `generated` tokens, if `params.penalized`; else empty."""


class PageWrite(NamedTuple):
    """``block_table[row, first : first + len(pages)] = pages``."""

    row: int
    first: int
    pages: list[int]


class MaskWrite(NamedTuple):
    """In this step, `row` may only choose among the tokens whose bits are set in `words`."""

    row: int
    words: bytes
    """int32 [ceil(vocab / 32)]; bit i of word j is token ``32 * j + i``."""


class PrefillChunk(NamedTuple):
    """Read `tokens` into the KV cache of `row`, at positions ``start .. start + len(tokens) - 1``."""

    row: int
    start: int
    tokens: list[int]
    sample: bool
    """The chunk ends what is known of the request: sample its next token."""
    targets: list[int] = []  # noqa: RUF012 (the default of a named tuple is never changed)
    """What follows each of the first of `tokens`, where its log-probability is asked for."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step. Immutable once launched.

    The step's token rows are ordered: `decode_rows`, then `prefill`, each in the order of its list.
    Its result has one token for each decode row, then one for each chunk with `sample`, in that order.
    """

    joined: list[Join] = field(default_factory=list)
    pages: list[PageWrite] = field(default_factory=list)
    decode_rows: list[int] = field(default_factory=list)
    """Rows whose last token is fed to the model. Do not mutate: an unchanged list is sent again as it is."""
    decode_lengths: list[int] = field(default_factory=list)
    """Tokens in the KV cache of each decode row after this step: the host's mirror, for planning attention."""
    prefill: list[PrefillChunk] = field(default_factory=list)
    masks: list[MaskWrite] = field(default_factory=list)
    """Of every row with a grammar that samples in this step."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads in this step."""
        return len(self.decode_rows) + sum(len(chunk.tokens) for chunk in self.prefill)


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities where one token was chosen, or given, from the model's own logits."""

    logprob: float
    """Of the token itself."""
    top_ids: list[int]
    """The most likely tokens, as many as were asked for, the most likely first."""
    top_logprobs: list[float]


class StepScores(NamedTuple):
    """The log-probabilities that a step was asked for."""

    sampled: dict[int, TokenScore]
    """By the place of the token in the step's result."""
    prompt: dict[int, list[TokenScore]]
    """By the place of the chunk in `Batch.prefill`: those of its `targets`."""


class PendingStep(Protocol):
    """A launched step whose tokens may not exist yet."""

    def tokens(self) -> list[int]:
        """Wait for the step and return its tokens in the order that `Batch` defines; raises what it raised."""
        ...

    def scores(self) -> StepScores | None:
        """After `tokens`: the log-probabilities of the rows and chunks that ask for them; None when none does."""
        ...


class Executor(Protocol):
    """What runs steps: the engine of one GPU, or a test's stand-in.

    Steps run in the order in which they are launched, each seeing the KV cache as the ones before left it.
    """

    def launch(self, batch: Batch) -> PendingStep:
        """Start a step and return at once."""
        ...

    def idle(self) -> bool:
        """Do a piece of the work that waits for spare time; False when none is left. No request may be running."""
        ...
