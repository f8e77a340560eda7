"""One request on its way through a scheduler: its tokens, where it is, and what it holds."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisgl.core.batch import TokenScore
    from minisgl.core.sampling import SamplingParams


class State(Enum):
    """Where a request is. A retracted request waits again, with the tokens it has generated so far."""

    WAITING = "waiting"
    PREFILL = "prefill"
    """Admitted: holds a row and pages; part of its tokens are not in the KV cache yet."""
    DECODE = "decode"
    """Every token but the newest is in the KV cache, or will be when the launched steps have run."""
    FINISHED = "finished"


LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.FINISHED}),
    State.PREFILL: frozenset({State.DECODE, State.WAITING, State.FINISHED}),
    State.DECODE: frozenset({State.WAITING, State.FINISHED}),
    State.FINISHED: frozenset(),
}


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    GRAMMAR = "grammar"
    """Its grammar takes too much work to follow, from some token on."""


class IllegalMove(RuntimeError):
    """A request was asked to change to a state that its present state does not lead to."""


class Request:
    """A request as a scheduler sees it.

    Invariant: ``0 <= computed <= len(tokens) + in_flight``, where `computed` counts the tokens whose keys and
    values are in the cache once every launched step has run, and `in_flight` the tokens that launched steps
    sample and the host has not read yet.
    """

    __slots__ = (
        "arrival",
        "asked",
        "bypassed",
        "cached_tokens",
        "computed",
        "end",
        "in_flight",
        "masked",
        "matcher",
        "pages",
        "params",
        "prefix",
        "prompt_length",
        "prompt_scores",
        "row",
        "shown",
        "state",
        "stop_ids",
        "tokens",
        "uid",
    )

    def __init__(
        self,
        *,
        uid: int,
        prompt: list[int],
        params: SamplingParams,
        max_tokens: int,
        stop_ids: frozenset[int],
        arrival: int,
        shown: int = 0,
    ) -> None:
        self.uid = uid
        self.tokens = list(prompt)
        """Prompt, then the generated tokens that the host knows."""
        self.prompt_length = len(prompt)
        self.params = params
        self.end = len(prompt) + max_tokens
        """The length of `tokens` at which the request ends."""
        self.stop_ids = stop_ids
        """A generated token among these ends the request."""
        self.arrival = arrival
        """Its place in the order of arrival; the newest is retracted first."""
        self.shown = shown
        """How many of the prompt's last tokens the answer's text begins with."""
        self.prompt_scores: list[TokenScore] = []
        """Log-probabilities of the prompt's tokens but the first, as far as they are known, if asked for."""
        self.asked = 0
        """How many of them launched steps compute."""
        self.state = State.WAITING
        self.row = -1
        """Its row in the request table and on the device; -1 while it waits."""
        self.pages: list[int] = []
        """Page i holds tokens ``[i * page_size, (i + 1) * page_size)``."""
        self.prefix: Any = None
        """The prefix cache's handle (`kvcache.manager.Prefix`) on the first pages, which it owns and locks."""
        self.computed = 0
        self.in_flight = 0
        self.cached_tokens: int | None = None
        """Prompt tokens that the prefix cache spared at first admission; None before it."""
        self.matcher: Any = None
        """Its grammar's (`grammar.pool.Matcher`), which knows every token that the host knows; None: any text."""
        self.masked = True
        """Every rank has been told that the matcher knows what may come next."""
        self.bypassed = 0
        """How many later requests were admitted while this one headed the queue and did not fit."""

    @property
    def generated(self) -> int:
        """Tokens generated so far that the host knows."""
        return len(self.tokens) - self.prompt_length

    @property
    def unasked(self) -> bool:
        """Log-probabilities of tokens of the prompt are still to be computed."""
        return self.params.prompt_logprobs and self.asked < self.prompt_length - 1

    def reusable(self) -> list[int]:
        """The tokens whose keys and values may come from the prefix cache.

        The last token is always computed: its output is what the next token is sampled from. So is each token
        whose output is asked for.
        """
        return self.tokens[: self.asked if self.unasked else -1]

    def move(self, state: State) -> None:
        """Enter `state`; raises `IllegalMove` when the present state does not lead there."""
        if state not in LEGAL_MOVES[self.state]:
            raise IllegalMove(f"request {self.uid}: {self.state.value} -> {state.value}")
        self.state = state

    def __repr__(self) -> str:
        return f"Request(uid={self.uid}, {self.state.value}, tokens={len(self.tokens)}, row={self.row})"
