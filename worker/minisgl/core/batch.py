"""One step of the engine, as plain data: what the scheduler decides and an executor carries out.

The device keeps, for each row of the request table, a block table (the row's pages), the number of tokens in
the KV cache, the last token, and the sampling parameters. A batch therefore says only what *changes*: rows that
join, pages handed out, prompt tokens to read. A steady decode step is a list of rows and nothing else, and even
that list is the same object as the step before when no request joined or left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from minisgl.core.sampling import SamplingParams


class Join(NamedTuple):
    """`row` now belongs to a new request: its sampling state starts afresh."""

    row: int
    params: SamplingParams
    generated: int
    """Tokens generated before (a retracted request comes back with some): the random counter goes on from here."""


class PageWrite(NamedTuple):
    """``block_table[row, first : first + len(pages)] = pages``."""

    row: int
    first: int
    pages: list[int]


class PrefillChunk(NamedTuple):
    """Read `tokens` into the KV cache of `row`, at positions ``start .. start + len(tokens) - 1``."""

    row: int
    start: int
    tokens: list[int]
    sample: bool
    """The chunk ends what is known of the request: sample its next token."""


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

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads in this step."""
        return len(self.decode_rows) + sum(len(chunk.tokens) for chunk in self.prefill)


class PendingStep(Protocol):
    """A launched step whose tokens may not exist yet."""

    def tokens(self) -> list[int]:
        """Wait for the step and return its tokens in the order that `Batch` defines; raises what it raised."""
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
