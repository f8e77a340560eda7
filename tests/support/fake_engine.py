"""An executor without a model, for tests of scheduling: its "logits" are a hash of what it finds in its KV cache.

It keeps what a device keeps (block tables, lengths, last tokens, pages) and learns of it only from batches. A
request's tokens come out right only if every page held the right tokens at the time the step ran, so a wrong
page, row, length or order shows as a wrong token.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from minisgl.core.batch import Batch, Join, StepScores, TokenScore

VOCAB = 50


def next_token(tokens: Sequence[int], mask: bytes | None = None) -> int:
    """The fake model: any sequence determines its next token, among those whose bits are set in `mask`."""
    number = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=4).digest()[0]
    if mask is None:
        return number % VOCAB
    allowed = [token for token in range(VOCAB) if mask[token >> 3] >> (token & 7) & 1]
    return allowed[number % len(allowed)]


def fake_score(before: Sequence[int], token: int, likely: int) -> TokenScore:
    """The fake model's log-probability of `token` after `before`, which any other place or token would change."""
    hashed = hashlib.blake2b(repr((list(before), token)).encode(), digest_size=4).digest()[0]
    return TokenScore(-hashed / 16, list(range(likely)), [-float(place) for place in range(likely)])


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
        tokens, self._scores = self._engine.run_until(self._number)
        return tokens

    def scores(self) -> StepScores | None:
        return self._scores


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
        self._joins: dict[int, Join] = {}
        self._results: dict[int, tuple[list[int], StepScores | None]] = {}
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

    def run_until(self, number: int) -> tuple[list[int], StepScores | None]:
        while number not in self._results:
            step, batch = self._queue.popleft()
            self._results[step] = self._run(batch)
        return self._results.pop(number)

    def _run(self, batch: Batch) -> tuple[list[int], StepScores | None]:
        for join in batch.joined:
            self._joins[join.row] = join
        for write in batch.pages:
            assert write.row >= 0 and write.pages
            self._tables[write.row][write.first : write.first + len(write.pages)] = write.pages
        sampled: list[int] = []
        scores = StepScores({}, {})
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
                self._check_joined(chunk.row)
        # All keys and values of a step are written before any of its rows reads: shared pages must be older.
        for place, chunk in enumerate(batch.prefill):
            known, likely = self._read(chunk.row), self._joins[chunk.row].params.logprobs
            if chunk.targets:
                assert likely is not None and len(chunk.targets) <= len(chunk.tokens)
                places = enumerate(chunk.targets, chunk.start + 1)
                scores.prompt[place] = [fake_score(known[:end], token, likely) for end, token in places]
        masks = {write.row: write.words for write in batch.masks}
        for place, row in enumerate(sampled):
            known, params = self._read(row), self._joins[row].params
            self._last[row] = next_token(known, masks.pop(row) if params.grammar else None)
            if params.logprobs is not None:
                scores.sampled[place] = fake_score(known, self._last[row], params.logprobs)
        assert not masks, "a mask for a row that has no grammar, or does not sample"
        asked = scores.sampled or scores.prompt
        return [self._last[row] for row in sampled], scores if asked else None

    def _check_joined(self, row: int) -> None:
        """The prompt is read: what was known of the request when it joined must be what it has now."""
        _, params, generated, tokens = self._joins[row]
        assert generated < len(self._read(row))
        assert tokens == (self._read(row) if params.penalized else [])

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
