"""Text of the prompt before the answer's, and log-probabilities as people read them."""

from __future__ import annotations

import pytest

from minisgl.core.batch import TokenScore
from minisgl.message import StepText, StepTokens
from minisgl.message.types import Opened, TextScore, TokenText
from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.text import TextTokenizer

EOS = 2
STOP, LENGTH = "stop", "length"


def ids_of(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def answer(
    tokenizer: TextTokenizer, shown: list[int], tokens: list[int], *, stop: tuple[str, ...] = (), reason: str = ""
) -> list[StepText]:
    """What is sent for an answer, a token a frame, the last one with `reason`."""
    detokenizer = Detokenizer(tokenizer)
    steps = []
    for place, token in enumerate(tokens):
        ended = reason if place == len(tokens) - 1 else ""
        frame = StepTokens(
            uids=[1],
            tokens=[token],
            opened=[] if place else [Opened(1, len(shown) + 3, 0, stop, shown)],
            finished_uids=[1] if ended else [],
            finish_reasons=[ended] if ended else [],
        )
        steps.append(detokenizer.feed(frame)[0])
    return steps


def text_of(steps: list[StepText]) -> str:
    return "".join(text for step in steps for text in step.texts)


def test_text_of_the_prompt_comes_with_the_first_token(smol: TextTokenizer) -> None:
    steps = answer(smol, ids_of(smol, "<think>\n"), ids_of(smol, "So it is"))
    assert steps[0].texts[0].startswith("<think>\nSo")
    assert text_of(steps) == "<think>\nSo it is"
    assert [step.generated for step in steps] == [[n] for n in range(1, len(steps) + 1)]


def test_special_tokens_of_the_prompt_are_not_shown(smol: TextTokenizer) -> None:
    steps = answer(smol, ids_of(smol, "<|im_start|>user\nHi<|im_end|>"), ids_of(smol, " there"))
    assert text_of(steps) == "user\nHi there"


def test_stop_strings_in_the_prompt_do_not_stop(smol: TextTokenizer) -> None:
    steps = answer(smol, ids_of(smol, "stop END stop EN"), ids_of(smol, "D and END of it"), stop=("END",))
    assert text_of(steps) == "stop END stop END and "


def test_an_answer_of_nothing_shows_the_prompt(smol: TextTokenizer) -> None:
    [step] = answer(smol, ids_of(smol, "Yes?"), [EOS], reason=STOP)
    assert (step.texts, step.finish_reasons) == (["Yes?"], [STOP])


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_character_may_begin_in_the_prompt_and_end_in_the_answer(qwen: TextTokenizer, cut: int) -> None:
    ids = ids_of(qwen, "a🫠b🫠🫠c")
    assert len(ids) > 8
    steps = answer(qwen, ids[:cut], ids[cut:], reason=LENGTH)
    assert text_of(steps) == "a🫠b🫠🫠c"


def test_scores_are_sent_with_their_tokens_though_text_is_held(smol: TextTokenizer) -> None:
    one, two = ids_of(smol, " EN"), ids_of(smol, "D.")
    detokenizer = Detokenizer(smol)
    opened = [Opened(7, 3, 0, ("END!",)), Opened(8, 3, 0, ())]
    score = TokenScore(-0.5, [one[0], two[0]], [-0.5, -1.5])
    step, _ = detokenizer.feed(
        StepTokens(uids=[8, 7], tokens=[two[0], one[0]], opened=opened, scored=[1], scores=[score])
    )
    assert step.uids == [8, 7] and step.scored == [1]
    text, data = smol.read_token(one[0])
    other = smol.read_token(two[0])
    assert step.scores == [[TextScore(text, data, -0.5, [TokenText(text, data, -0.5), TokenText(*other, -1.5)])]]
    step, _ = detokenizer.feed(StepTokens(uids=[8, 7], tokens=[two[1], two[0]]))
    assert not step.scored and not step.scores


def test_the_token_that_ends_an_answer_has_no_entry(smol: TextTokenizer) -> None:
    score = TokenScore(-0.1, [], [])
    detokenizer = Detokenizer(smol)
    token = ids_of(smol, "x")[0]
    step, _ = detokenizer.feed(
        StepTokens(uids=[1], tokens=[token], opened=[Opened(1, 3, 0, ())], scored=[0], scores=[score])
    )
    assert step.scores == [[TextScore("x", b"x", -0.1)]]
    end = StepTokens(uids=[1], tokens=[EOS], finished_uids=[1], finish_reasons=[STOP], scored=[0], scores=[score])
    step, _ = detokenizer.feed(end)
    assert (step.finish_reasons, step.scored, step.scores) == ([STOP], [], [])


@pytest.mark.parametrize("tokens", ["y", ""])
def test_scores_of_the_prompt_come_first(smol: TextTokenizer, tokens: str) -> None:
    shown = ids_of(smol, "a b c")
    scores = [TokenScore(-float(place), [shown[0]], [-0.25]) for place in range(1, len(shown))]
    opened = Opened(1, 9, 0, (), shown, scores)
    own = [TokenScore(-9.0, [], [])]
    chosen = ids_of(smol, tokens) or [EOS]
    frame = StepTokens(uids=[1], tokens=chosen, opened=[opened], scored=[0], scores=own)
    if not tokens:
        frame.finished_uids.append(1)
        frame.finish_reasons.append(STOP)
    step, _ = Detokenizer(smol).feed(frame)
    assert step.texts == ["a b c" + tokens]
    first, *others = step.scores[0]
    assert first == TextScore("a", b"a", None)
    assert [entry.logprob for entry in others] == [-1.0, -2.0, *([-9.0] if tokens else [])]
    assert "".join(entry.text for entry in step.scores[0]) == "a b c" + tokens
    assert others[0].top == [TokenText("a", b"a", -0.25)]
