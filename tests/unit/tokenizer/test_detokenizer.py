"""Frames of tokens to frames of text."""

from __future__ import annotations

import pytest

from minisgl.message import StepText, StepTokens
from minisgl.message.types import Opened
from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.text import TextTokenizer

EOS = 2
END, STOP, LENGTH, ABORT = "", "stop", "length", "abort"


class Conversation:
    """Feeds one request's text, a token a frame, and collects what its client would see."""

    def __init__(self, tokenizer: TextTokenizer, *, stop: tuple[str, ...] = (), uid: int = 7) -> None:
        self.tokenizer = tokenizer
        self.detokenizer = Detokenizer(tokenizer)
        self.uid = uid
        self.opened = [Opened(uid, 5, 3, stop)]
        self.text = ""
        self.reason = ""
        self.generated: list[int] = []
        self.aborted: list[int] = []

    def token(self, token: int, reason: str = "") -> None:
        frame = StepTokens(
            uids=[self.uid],
            tokens=[token],
            opened=self.opened,
            finished_uids=[self.uid] if reason else [],
            finish_reasons=[reason] if reason else [],
        )
        self.opened = []
        self.take(self.detokenizer.feed(frame))

    def say(self, text: str, reason: str = "") -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        for number, token in enumerate(ids, 1):
            self.token(token, reason if number == len(ids) else "")

    def take(self, answer: tuple[StepText, list[int]]) -> None:
        step, aborted = answer
        assert self.reason == "" or not step.uids, "text after the end"
        for uid, text, reason in zip(step.uids, step.texts, step.finish_reasons, strict=True):
            assert uid == self.uid
            self.text += text
            self.reason = reason
        self.generated += step.generated
        self.aborted += aborted


def test_text_counts_and_the_end_of_sequence(smol: TextTokenizer) -> None:
    talk = Conversation(smol)
    talk.say("Paris is 1 café")
    talk.token(EOS, STOP)
    assert (talk.text, talk.reason, talk.aborted) == ("Paris is 1 café", STOP, [])
    assert talk.generated == list(range(1, len(talk.generated) + 1))
    assert len(talk.detokenizer) == 0


def test_a_stop_token_that_is_no_special_token_is_not_shown_either(smol: TextTokenizer) -> None:
    talk = Conversation(smol)
    talk.say("Hello.", STOP)
    assert (talk.text, talk.reason) == ("Hello", STOP)


def test_length_shows_everything(smol: TextTokenizer) -> None:
    talk = Conversation(smol)
    talk.say("Hello.", LENGTH)
    assert (talk.text, talk.reason) == ("Hello.", LENGTH)


def test_prompt_counts_come_with_every_piece(smol: TextTokenizer) -> None:
    detokenizer = Detokenizer(smol)
    step, _ = detokenizer.feed(StepTokens(uids=[1], tokens=[50], opened=[Opened(1, 11, 4, ())]))
    assert (step.prompt_tokens, step.cached_tokens) == ([11], [4])


def test_a_stop_string_over_several_tokens(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("\n\nQuestion:",))
    talk.say("An answer.\n\nQuest of the day.\n")
    assert talk.text == "An answer.\n\nQuest of the day.", "the last line end may begin the stop string"
    talk.say("\nQuestion: another?")
    assert (talk.text, talk.reason, talk.aborted) == ("An answer.\n\nQuest of the day.", STOP, [7])
    assert len(talk.detokenizer) == 0


def test_what_was_held_is_shown_when_the_length_ends_it(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("END",))
    talk.say("the EN")
    assert talk.text == "the "
    talk.say("d", LENGTH)
    assert (talk.text, talk.reason) == ("the ENd", LENGTH)


@pytest.mark.parametrize("reason", [STOP, LENGTH])
def test_held_text_is_shown_at_the_end(smol: TextTokenizer, reason: str) -> None:
    talk = Conversation(smol, stop=("END",))
    talk.say("the EN")
    talk.token(EOS, reason)
    assert (talk.text, talk.reason) == ("the EN", reason)


def test_a_stop_string_with_the_last_token_is_a_stop_and_needs_no_abort(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("END",))
    talk.say("the END", LENGTH)
    assert (talk.text, talk.reason, talk.aborted) == ("the ", STOP, [])


def test_an_unfinished_character_can_complete_a_stop_string_at_the_end(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("x\ufffd",))
    first_byte = smol.encode("😀", add_special_tokens=False)[0]
    talk.say("abx")
    talk.token(first_byte, LENGTH)
    assert (talk.text, talk.reason, talk.aborted) == ("ab", STOP, [])


def test_tokens_after_a_stop_string_are_dropped(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("!",))
    talk.say("Stop! Go on and on.", LENGTH)
    assert (talk.text, talk.reason, talk.aborted) == ("Stop", STOP, [7])


def test_an_aborted_request_ends_without_text(smol: TextTokenizer) -> None:
    talk = Conversation(smol, stop=("END",))
    talk.say("the EN")
    talk.take(talk.detokenizer.feed(StepTokens(finished_uids=[7], finish_reasons=[ABORT])))
    assert (talk.text, talk.reason, talk.aborted) == ("the ", ABORT, [])
    assert len(talk.detokenizer) == 0


def test_a_token_that_comes_with_an_abort_is_not_shown(smol: TextTokenizer) -> None:
    talk = Conversation(smol)
    talk.say("one two", ABORT)
    assert (talk.text, talk.reason, talk.aborted) == ("one", ABORT, [])


def test_unknown_requests_are_ignored(smol: TextTokenizer) -> None:
    detokenizer = Detokenizer(smol)
    frame = StepTokens(uids=[9], tokens=[50], finished_uids=[9, 10], finish_reasons=[LENGTH, ABORT])
    assert detokenizer.feed(frame) == (StepText(), [])


def test_requests_in_one_frame_do_not_mix(smol: TextTokenizer) -> None:
    texts = {1: "first: naïve 😀", 2: "second: 你好", 3: "third"}
    ids = {uid: smol.encode(text, add_special_tokens=False) for uid, text in texts.items()}
    detokenizer = Detokenizer(smol)
    shown = dict.fromkeys(texts, "")
    for step in range(max(map(len, ids.values()))):
        running = [uid for uid in ids if step < len(ids[uid])]
        ended = [uid for uid in running if step == len(ids[uid]) - 1]
        answer, _ = detokenizer.feed(
            StepTokens(
                uids=running,
                tokens=[ids[uid][step] for uid in running],
                opened=[Opened(uid, 1, 0, ()) for uid in running] if step == 0 else [],
                finished_uids=ended,
                finish_reasons=[LENGTH] * len(ended),
            )
        )
        assert answer.uids == running
        assert answer.finish_reasons == [LENGTH if uid in ended else "" for uid in running]
        for uid, text in zip(answer.uids, answer.texts, strict=True):
            shown[uid] += text
    assert shown == texts


def test_several_tokens_of_one_request_in_a_frame(smol: TextTokenizer) -> None:
    ids = smol.encode("one two three", add_special_tokens=False)
    frame = StepTokens(
        uids=[1] * len(ids),
        tokens=ids,
        opened=[Opened(1, 1, 0, ())],
        finished_uids=[1],
        finish_reasons=[LENGTH],
    )
    step, _ = Detokenizer(smol).feed(frame)
    assert "".join(step.texts) == "one two three"
    assert step.finish_reasons == ["", "", LENGTH]
