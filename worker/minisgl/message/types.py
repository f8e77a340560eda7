"""What the processes of a worker say to each other.

    API server --ToTokenizer--> tokenizer --ToScheduler--> scheduler rank 0 --Round--> the other ranks
    API server <--FromWorkers-- detokenizer <--StepTokens-- scheduler rank 0
    API server --Watch--> scheduler rank 0 --Timeline--> API server

A tokenizer may answer the API server itself (`Rejected`, `Tokens`, `Text`), and the detokenizer tells the
scheduler when a stop string ended a request (`Abort`). Messages of one request take one path, so they cannot
overtake each other. Frames that go out every step are in columns: element i of each list is about the same
request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from minisgl.core.batch import TokenScore
from minisgl.core.config import EngineLimits
from minisgl.core.sampling import SamplingParams


class TokenizeRequest(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A prompt as the API server accepted it. Exactly one of `messages`, `text` and `token_ids` is set."""

    uid: int
    """Of the first answer; the others have the ids that follow."""
    copies: int = 1
    """Answers wanted. Answer i has the seed ``params.seed + i``, in 63 bits."""
    params: SamplingParams
    max_seq_len: int
    """Prompt and output together may not pass this many tokens."""
    messages: list[dict[str, Any]] | None = None
    """A chat, for the model's template."""
    template: dict[str, Any] = {}
    """What the template is told besides: `tools`, and variables of its own."""
    text: str | None = None
    token_ids: list[int] | None = None
    limit_name: str = "max_tokens"
    """What the client calls `params.max_tokens`."""
    grammar_name: str = "response_format"
    """The parameter that `params.grammar` comes from."""
    echo: bool = False
    """The answer's text begins with the prompt's."""
    vocab_size: int = 0
    """Every id of `token_ids` must lie in ``[0, vocab_size)``."""


class TextToTokens(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Only the tokens are wanted, of a text or a chat: the tokenizer answers with `Tokens`."""

    uid: int
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    template: dict[str, Any] = {}
    """As in `TokenizeRequest`."""
    add_special_tokens: bool
    names: bool
    """Also what the vocabulary calls the tokens."""
    max_seq_len: int
    """A text that is longer than this many of the longest token is refused unread."""


class TokensToText(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The tokenizer answers with `Text`."""

    uid: int
    token_ids: list[int]
    vocab_size: int
    """As in `TokenizeRequest`."""


class Abort(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Forget the request, in whatever state it is. Unknown ids are ignored."""

    uid: int


class NewRequest(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A request ready to be scheduled: `params.max_tokens` and `params.seed` are set, and it fits the limits."""

    uid: int
    token_ids: list[int]
    params: SamplingParams
    copies: int = 1
    """As in `TokenizeRequest`. The others wait until the first has put the prompt into the prefix cache."""
    shown: int = 0
    """How many of the prompt's last tokens the answer's text begins with: an echo, or a thought that the chat
    template has opened."""


class Watch(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Somebody looks on: for so long, send the `Timeline`. Rank 0 keeps it to itself."""

    seconds: float


class GrammarChecked(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A tokenizer's thread tells its loop: the grammar of the request was tried."""

    uid: int
    refusal: str
    """Why no answer can follow it; empty if one can."""


class GrammarBuilt(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A thread of rank 0 tells every rank: the request can be scheduled, its first mask is known."""

    uid: int


class MasksBuilt(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A thread of rank 0 tells every rank: what may follow the tokens of some answers with grammars is known."""

    number: int
    """Of what `MatcherPool.advance` was asked for."""


class Round(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What rank 0 read before a step. Every rank handles the same rounds in the same order."""

    messages: list[NewRequest | Abort | GrammarBuilt | MasksBuilt]
    stop: bool = False
    """The last round: leave the loop."""


class StepDigest(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What a rank is about to compute. Rank 0 sends it after each round when ranks compare their steps."""

    step: int
    """Steps scheduled so far, this one among them."""
    parts: dict[str, bytes]
    """A hash of each part of the step, by the part's name."""


class StepTokens(msgspec.Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """One step's output, scheduler to detokenizer.

    `opened` names requests that the detokenizer has not seen, with what it must know of them, before their first
    token. `finished` requests get no more tokens; one that was aborted may appear there alone.
    """

    uids: list[int] = []
    tokens: list[int] = []
    opened: list[Opened] = []
    finished_uids: list[int] = []
    finish_reasons: list[str] = []
    """`minisgl.core.request.FinishReason` values. The last token of one that ended with "stop" is not text."""
    scored: list[int] = []
    """Places in `tokens` of those whose log-probabilities were asked for, ascending."""
    scores: list[TokenScore] = []
    """Theirs, in that order."""


class Opened(msgspec.Struct, frozen=True, array_like=True):
    uid: int
    prompt_tokens: int
    cached_tokens: int
    stop: tuple[str, ...]
    shown: list[int] = []
    """Tokens of the prompt whose text comes before the answer's."""
    prompt_scores: list[TokenScore] | None = None
    """Of each token of `shown` but the first, if they were asked for."""


class TokenText(msgspec.Struct, frozen=True, array_like=True):
    """A token as people read it."""

    text: str
    """U+FFFD stands for bytes that are not UTF-8 by themselves."""
    data: bytes
    """Its own bytes."""
    logprob: float


class TextScore(msgspec.Struct, frozen=True, array_like=True):
    """A token of an answer, and those that were most likely in its place."""

    text: str
    data: bytes
    logprob: float | None
    """None: a prompt's first token, which nothing predicts."""
    top: list[TokenText] = []


class StepText(msgspec.Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """One step's output, detokenizer to API server, in columns."""

    uids: list[int] = []
    texts: list[str] = []
    """Text that became final in this step; may be empty."""
    generated: list[int] = []
    """Tokens generated so far."""
    prompt_tokens: list[int] = []
    cached_tokens: list[int] = []
    finish_reasons: list[str] = []
    """Empty while the request goes on."""
    scored: list[int] = []
    """Places in `uids` of those that asked for log-probabilities and have got some, ascending."""
    scores: list[list[TextScore]] = []
    """Theirs, in that order: one for each token, whether or not its text is final."""


class Rejected(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A tokenizer found that the request cannot be served; the scheduler never sees it."""

    uid: int
    message: str
    param: str | None = None
    code: str | None = None


class Tokens(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The answer to `TextToTokens`."""

    uid: int
    token_ids: list[int]
    names: list[str] | None = None


class Text(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The answer to `TokensToText`, special tokens included."""

    uid: int
    text: str


class Heartbeat(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """`process` is ready and lives. Sent about once a second."""

    process: str
    rounds: int | None = None
    """How often the loop of a rank has gone round, whose heartbeats a thread sends. None: the loop sends them."""


class SchedulerReady(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Rank 0 serves from now on."""

    limits: EngineLimits
    phases: dict[str, float]
    """Seconds spent in each phase of the start."""


class SchedulerStats(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Gauges as they are, counters since the start."""

    running: int = 0
    queued: int = 0
    used_pages: int = 0
    """Pages of running requests, and tree pages they have locked."""
    cached_pages: int = 0
    """Tree pages that nobody locks: they can be evicted."""
    total_pages: int = 0
    prompt_tokens: int = 0
    """Tokens of admitted prompts."""
    cached_tokens: int = 0
    """Of those, the ones that the prefix cache spared."""
    retractions: int = 0
    evicted_pages: int = 0
    steps: int = 0


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    number: int
    """Steps before it."""
    started: float
    """By `time.monotonic`."""
    seconds: float
    crowd: int
    """Who decoded in it: a place in `Timeline.crowds`."""
    read: list[tuple[int, int]]
    """Whose prompts were read in it, by id, and how many tokens of each."""


class Timeline(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What the scheduler did lately, oldest first. No tokens, no text."""

    crowds: list[list[int]] = []
    """Ids of requests that decoded together; most steps have that of the step before."""
    steps: list[StepRecord] = []


ToTokenizer = TokenizeRequest | TextToTokens | TokensToText | Abort | GrammarChecked
ToScheduler = NewRequest | Abort | GrammarBuilt | MasksBuilt | Watch
FromWorkers = StepText | Rejected | Tokens | Text | Heartbeat | SchedulerReady | SchedulerStats | Timeline
