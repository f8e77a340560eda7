"""An executor without a model, for tests of scheduling: its "logits" are a hash of what it finds in its KV cache.

It keeps what a device keeps (block tables, lengths, last tokens, pages) and learns of it only from batches. A
request's tokens come out right only if every page held the right tokens at the time the step ran, so a wrong
page, row, length or order shows as a wrong token.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from minisgl.core.batch import Batch

VOCAB = 50


def next_token(tokens: Sequence[int], mask: bytes | None = None) -> int:
    """The fake model: any sequence determines its next token, among those whose bits are set in `mask`."""
    number = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=4).digest()[0]
    if mask is None:
        return number % VOCAB
    allowed = [token for token in range(VOCAB) if mask[token >> 3] >> (token & 7) & 1]
    return allowed[number % len(allowed)]


def reference(prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int] = frozenset()) -> list[int]:
    """What a request must generate, whatever else runs."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class FakeStep:
    def __init__(self, engine: FakeEngine, number: int) -> None:
        self._engine = engine
        self._number = number

    def tokens(self) -> list[int]:
        return self._engine.run_until(self._number)


class FakeEngine:
    """Runs launched steps in order, but only when somebody waits: the latest a device could be."""

    def __init__(self, *, num_pages: int, page_size: int, num_rows: int, chores: int = 0) -> None:
        """`chores`: pieces of work that wait for spare time."""
        self.chores = chores
        self.page_size = page_size
        self._kv: list[list[int | None]] = [[None] * page_size for _ in range(num_pages)]
        self._tables: list[list[int]] = [[-1] * num_pages for _ in range(num_rows)]
        self._lengths = [0] * num_rows
        self._last = [-1] * num_rows
        self._queue: deque[tuple[int, Batch]] = deque()
        self._results: dict[int, list[int]] = {}
        self._launched = 0
        self.batches: list[Batch] = []
        self.idled_after: list[int] = []
        """For each call of `idle`, the number of steps launched before."""

    def launch(self, batch: Batch) -> FakeStep:
        self._queue.append((self._launched, batch))
        self.batches.append(batch)
        self._launched += 1
        return FakeStep(self, self._launched - 1)

    def idle(self) -> bool:
        assert not self._queue, "a step is in flight"
        self.idled_after.append(self._launched)
        self.chores = max(0, self.chores - 1)
        return self.chores > 0

    def run_until(self, number: int) -> list[int]:
        while number not in self._results:
            step, batch = self._queue.popleft()
            self._results[step] = self._run(batch)
        return self._results.pop(number)

    def _run(self, batch: Batch) -> list[int]:
        for write in batch.pages:
            assert write.row >= 0 and write.pages
            self._tables[write.row][write.first : write.first + len(write.pages)] = write.pages
        sampled: list[int] = []
        assert len(set(batch.decode_rows)) == len(batch.decode_rows)
        for row, length in zip(batch.decode_rows, batch.decode_lengths, strict=True):
            self._write(row, self._lengths[row], [self._last[row]])
            assert self._lengths[row] == length, "the host's mirror of a length is wrong"
            sampled.append(row)
        for chunk in batch.prefill:
            assert chunk.tokens
            self._write(chunk.row, chunk.start, chunk.tokens)
            if chunk.sample:
                sampled.append(chunk.row)
        # All keys and values of a step are written before any of its rows reads: shared pages must be older.
        masks = {write.row: write.words for write in batch.masks}
        assert len(masks) == len(batch.masks) and masks.keys() <= set(sampled)
        for row in sampled:
            self._last[row] = next_token(self._read(row), masks.get(row))
        return [self._last[row] for row in sampled]

    def _write(self, row: int, start: int, tokens: list[int]) -> None:
        for position, token in enumerate(tokens, start):
            page = self._tables[row][position // self.page_size]
            self._kv[page][position % self.page_size] = token
        self._lengths[row] = start + len(tokens)

    def _read(self, row: int) -> list[int]:
        tokens = []
        for position in range(self._lengths[row]):
            token = self._kv[self._tables[row][position // self.page_size]][position % self.page_size]
            assert token is not None, "a position was never written"
            tokens.append(token)
        return tokens
