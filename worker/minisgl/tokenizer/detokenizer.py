"""A step's tokens to the text that its clients may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisgl.core.request import FinishReason
from minisgl.message import StepText, StepTokens
from minisgl.message.types import TextScore, TokenText
from minisgl.tokenizer.stop_strings import StopStrings
from minisgl.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from minisgl.core.batch import TokenScore
    from minisgl.message.types import Opened
    from minisgl.tokenizer.text import TextTokenizer

STOP, ABORT = FinishReason.STOP.value, FinishReason.ABORT.value


class _Entry:
    """One request that is being answered."""

    __slots__ = ("begun", "cached_tokens", "generated", "prompt_tokens", "scores", "stops", "stream")

    def __init__(self, opened: Opened, tokenizer: TextTokenizer) -> None:
        self.stream = TextStream(tokenizer)
        self.begun = self.stream.begin(opened.shown) if opened.shown else ""
        """Text of the prompt that the answer begins with, until it is sent: stop strings may occur in it."""
        self.scores = _prompt_scores(opened, tokenizer)
        """Of tokens whose text is sent next."""
        self.stops = StopStrings(opened.stop)
        self.prompt_tokens = opened.prompt_tokens
        self.cached_tokens = opened.cached_tokens
        self.generated = 0

    def last_text(self) -> tuple[str, bool]:
        """Everything held back, and whether a stop string ends it."""
        text, hit = self.stops.push(self.stream.finish())
        return (text, True) if hit else (text + self.stops.finish(), False)


class Detokenizer:
    """The texts of all requests that are being answered.

    An entry lives from the frame that opens its request to the one that finishes it, or to its stop string.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        """Requests that are being answered."""
        return len(self._entries)

    def feed(self, frame: StepTokens) -> tuple[StepText, list[int]]:
        """The text of one step, and the requests that the scheduler must abort: a stop string ended them.

        Tokens of a request that is no longer answered are dropped.
        """
        for opened in frame.opened:
            self._entries[opened.uid] = _Entry(opened, self._tokenizer)
        finished = dict(zip(frame.finished_uids, frame.finish_reasons, strict=True))
        scores = dict(zip(frame.scored, frame.scores, strict=True))
        step = StepText()
        abort: list[int] = []
        for index, (uid, token) in enumerate(zip(frame.uids, frame.tokens, strict=True)):
            entry = self._entries.get(uid)
            if entry is None:
                continue
            entry.generated += 1
            score = scores.get(index)
            last = uid in finished and uid not in frame.uids[index + 1 :]
            reason = finished.pop(uid) if last else ""
            text, hit = "", False
            if reason not in (STOP, ABORT):
                text, hit = entry.stops.push(entry.stream.push(token))
                if score is not None:
                    entry.scores.append(text_score(self._tokenizer, token, score))
            if reason and not hit:
                self._finish(step, uid, text, reason)
                continue
            if hit:
                del self._entries[uid]
                if not reason:
                    abort.append(uid)
            _append(step, uid, entry, text, STOP if hit else "")
        for uid, reason in finished.items():
            if uid in self._entries:
                self._finish(step, uid, "", reason)
        return step, abort

    def _finish(self, step: StepText, uid: int, text: str, reason: str) -> None:
        """Close a request that the scheduler finished, with `text` and what was held back."""
        entry = self._entries.pop(uid)
        if reason != ABORT:
            rest, hit = entry.last_text()
            text, reason = text + rest, STOP if hit else reason
        _append(step, uid, entry, text, reason)


def _append(step: StepText, uid: int, entry: _Entry, text: str, reason: str) -> None:
    if entry.scores:
        step.scored.append(len(step.uids))
        step.scores.append(entry.scores)
        entry.scores = []
    step.uids.append(uid)
    step.texts.append(entry.begun + text)
    entry.begun = ""
    step.generated.append(entry.generated)
    step.prompt_tokens.append(entry.prompt_tokens)
    step.cached_tokens.append(entry.cached_tokens)
    step.finish_reasons.append(reason)


def text_score(tokenizer: TextTokenizer, token: int, score: TokenScore | None) -> TextScore:
    """A token and its log-probabilities as people read them; without, of a token that nothing predicts."""
    text, data = tokenizer.read_token(token)
    if score is None:
        return TextScore(text, data, None)
    top = [
        TokenText(*tokenizer.read_token(other), logprob)
        for other, logprob in zip(score.top_ids, score.top_logprobs, strict=True)
    ]
    return TextScore(text, data, score.logprob, top)


def _prompt_scores(opened: Opened, tokenizer: TextTokenizer) -> list[TextScore]:
    if opened.prompt_scores is None:
        return []
    scores = [None, *opened.prompt_scores][: len(opened.shown)]
    return [text_score(tokenizer, token, score) for token, score in zip(opened.shown, scores, strict=True)]
