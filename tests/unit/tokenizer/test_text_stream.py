"""Text in pieces: the same text as in one piece, whatever the pieces, and cut exactly at stop strings."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minisgl.tokenizer.stop_strings import StopStrings
from minisgl.tokenizer.stream import TextStream
from minisgl.tokenizer.text import TextTokenizer

relaxed = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
WIDE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé你😀👩‍ \n")))


def pieces(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


def scattered(tokenizer: TextTokenizer, text: str, cuts: list[int]) -> list[int]:
    """Tokens of `text`: in every second stretch between `cuts` the usual ones, in the others one for each byte."""
    byte = _byte_tokens(tokenizer)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    ids: list[int] = []
    for number, (start, end) in enumerate(pairwise(edges)):
        part = text[start:end]
        ids += [byte[b] for b in part.encode()] if number % 2 else tokenizer.encode(part, add_special_tokens=False)
    return ids


def _byte_tokens(tokenizer: TextTokenizer) -> list[int]:
    """The token of each byte, by GPT-2's table of printable stand-ins (its `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        stand_in.setdefault(byte, chr(256 + len(stand_in) - len(printable)))
    ids = [tokenizer._backend.token_to_id(stand_in[byte]) for byte in range(256)]
    return [-1 if token is None else token for token in ids]


@pytest.fixture(params=["smol", "qwen"])
def byte_level(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(request.param)
    return tokenizer


@relaxed
@given(ids=st.lists(st.integers(0, 49151), max_size=60))
def test_any_tokens_give_the_text_of_the_whole(byte_level: TextTokenizer, ids: list[int]) -> None:
    assert "".join(pieces(byte_level, ids)) == byte_level.decode(ids)


@relaxed
@given(data=st.binary(max_size=120))
def test_bytes_that_are_no_text_give_the_text_of_the_whole(qwen: TextTokenizer, data: bytes) -> None:
    byte = _byte_tokens(qwen)
    ids = [byte[b] for b in data]
    assert "".join(pieces(qwen, ids)) == qwen.decode(ids) == data.decode(errors="replace")


@relaxed
@given(text=WIDE, cuts=st.lists(st.integers(0, 1000), max_size=6))
def test_characters_split_over_tokens_never_show_broken(qwen: TextTokenizer, text: str, cuts: list[int]) -> None:
    shown = pieces(qwen, scattered(qwen, text, cuts))
    # Qwen3 normalizes what it encodes, so the stretches of single bytes alone are the text as it was.
    assert "".join(shown) == qwen.decode(scattered(qwen, text, cuts))
    assert "".join(shown).count("\ufffd") == text.count("\ufffd")


@relaxed
@given(text=WIDE)
def test_sentencepiece_text_comes_back(llama: TextTokenizer, text: str) -> None:
    ids = llama.encode(text, add_special_tokens=True)
    assert "".join(pieces(llama, ids)) == llama.decode(ids) == text.replace("▁", " ")


@relaxed
@given(ids=st.lists(st.sampled_from([0, 1, 2, 259, 260, 261, 288, 289, 10_000]), max_size=60))
def test_special_and_unknown_tokens_are_no_text(llama: TextTokenizer, ids: list[int]) -> None:
    assert "".join(pieces(llama, ids)) == llama.decode(ids)


def test_a_character_is_shown_with_its_last_byte(qwen: TextTokenizer) -> None:
    byte = _byte_tokens(qwen)
    shown = pieces(qwen, [byte[b] for b in "a😀b".encode()])
    assert shown == ["a", "", "", "", "😀", "b", ""]


def test_an_unfinished_character_is_shown_at_the_end_only(qwen: TextTokenizer) -> None:
    byte = _byte_tokens(qwen)
    assert pieces(qwen, [byte[b] for b in b"a\xf0\x9f"]) == ["a", "", "", "\ufffd"]


class Counting(TextTokenizer):
    """Counts the tokens that are decoded."""

    decoded = 0

    def decode(self, token_ids: list[int]) -> str:
        self.decoded += len(token_ids)
        return super().decode(token_ids)


@pytest.mark.parametrize("unit", [b"word ", "你😀".encode(), b"\xff", b"\xf0\x9f", b"\xef\xbf\xbd"])
def test_each_token_costs_the_same_however_long_the_text(qwen_path: str, unit: bytes) -> None:
    tokenizer = Counting(Tokenizer.from_file(f"{qwen_path}/tokenizer.json"), None)
    byte = _byte_tokens(tokenizer)
    ids = [byte[b] for b in unit * 500]
    text = "".join(pieces(tokenizer, ids))
    assert text == (unit * 500).decode(errors="replace")
    assert tokenizer.decoded < 20 * len(ids)


@pytest.mark.parametrize("token", [151_645, 10_000_000])
def test_tokens_that_are_no_text_cost_nothing(qwen_path: str, token: int) -> None:
    tokenizer = Counting(Tokenizer.from_file(f"{qwen_path}/tokenizer.json"), None)
    assert "".join(pieces(tokenizer, [token] * 1000)) == ""
    assert tokenizer.decoded == 0


# Stop strings


def push_all(stops: tuple[str, ...], parts: list[str]) -> tuple[list[str], bool]:
    matcher = StopStrings(stops)
    shown = []
    for part in parts:
        text, hit = matcher.push(part)
        shown.append(text)
        if hit:
            return shown, True
    return [*shown, matcher.finish()], False


def cut_by_hand(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Read character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@relaxed
@given(
    parts=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_the_text_ends_before_the_first_stop_string(parts: list[str], stops: tuple[str, ...]) -> None:
    shown, hit = push_all(stops, parts)
    assert ("".join(shown), hit) == cut_by_hand("".join(parts), stops)


@relaxed
@given(
    parts=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_text_is_held_only_while_it_may_begin_a_stop_string(parts: list[str], stops: tuple[str, ...]) -> None:
    shown, hit = push_all(stops, parts)
    for count in range(1, len(parts) - hit + 1):
        held = "".join(parts[:count])[len("".join(shown[:count])) :]
        if count < len(shown) and not (hit and count == len(shown)):
            assert held == "" or any(stop.startswith(held) for stop in stops)


@relaxed
@given(text=WIDE, cuts=st.lists(st.integers(0, 1000), max_size=6), data=st.data())
def test_tokens_to_text_with_stop_strings(
    qwen: TextTokenizer, text: str, cuts: list[int], data: st.DataObject
) -> None:
    ids = scattered(qwen, text, cuts)
    whole = qwen.decode(ids)
    start = data.draw(st.integers(0, len(whole)))
    stops = (whole[start : start + data.draw(st.integers(1, 5))] or "never", "ab")
    shown, hit = push_all(stops, pieces(qwen, ids))
    assert ("".join(shown), hit) == cut_by_hand(whole, stops)


def test_without_stop_strings_nothing_is_held() -> None:
    assert push_all((), ["a", "b"]) == (["a", "b", ""], False)
    assert push_all(("",), ["a", "b"]) == (["a", "b", ""], False)


@relaxed
@given(
    ids=st.lists(st.integers(0, 49151), max_size=60),
    text=WIDE,
    cuts=st.lists(st.integers(0, 1000), max_size=4),
    shown=st.integers(0, 1000),
)
def test_tokens_before_an_answer_give_the_text_of_the_whole(
    qwen: TextTokenizer, ids: list[int], text: str, cuts: list[int], shown: int
) -> None:
    ids = [*ids, *scattered(qwen, text, cuts)]
    shown %= len(ids) + 1
    stream = TextStream(qwen)
    begun = stream.begin(ids[:shown])
    assert qwen.decode(ids[:shown]).startswith(begun)
    assert begun + "".join([*map(stream.push, ids[shown:]), stream.finish()]) == qwen.decode(ids)


def test_a_prompt_that_is_no_text_is_read_in_time(qwen: TextTokenizer) -> None:
    """Thousands of bytes that begin characters, none of which ends."""
    byte = _byte_tokens(qwen)[0xF0]
    stream = TextStream(qwen)
    begun = stream.begin([byte] * 20_000)
    assert len(begun + stream.finish()) == 20_000
