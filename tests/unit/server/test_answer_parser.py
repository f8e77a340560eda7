"""An answer's text becomes thoughts, content and calls, however it is cut into pieces, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minisgl.grammar import ToolForm
from minisgl.server.answer_parser import AnswerParser
from minisgl.server.json_text import Expects, JsonText
from minisgl.server.parts import Arguments, Call, Content, Part, Thought
from minisgl.server.reasoning import ThoughtParser
from minisgl.server.tool_calls import ToolCallParser

NAMES = frozenset({"weather", "clock"})
FORMS: tuple[ToolForm, ...] = ("qwen", "llama3")


def parser(
    form: ToolForm | None, *, eager: bool = True, thinks: bool = False, most: int | None = None
) -> AnswerParser:
    return AnswerParser(
        ThoughtParser() if thinks else None,
        None if form is None else ToolCallParser(form, NAMES, eager=eager, most=most),
    )


def read(parser: AnswerParser, pieces: Iterable[str]) -> list[Part]:
    """All parts, those of one kind in a row as one."""
    parts: list[Part] = []
    for part in [part for piece in pieces for part in parser.push(piece)] + parser.finish():
        last = parts[-1] if parts else None
        if isinstance(part, (Content, Thought)) and type(last) is type(part):
            parts[-1] = type(part)(last.text + part.text)
        elif isinstance(part, Arguments) and isinstance(last, Arguments) and last.number == part.number:
            parts[-1] = Arguments(part.number, last.text + part.text)
        else:
            parts.append(part)
    return parts


def content(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


def call(number: int, name: str, arguments: str) -> list[Part]:
    return [Call(number, name), Arguments(number, arguments)]


WEATHER = '{"name": "weather", "arguments": {"city": "Z\\"ü{", "days": [1, -2.5e3, true, null]}}'
WEATHER_ARGUMENTS = '{"city": "Z\\"ü{", "days": [1, -2.5e3, true, null]}'
CLOCK = '{"name": "clock", "arguments": {}}'
QWEN_WEATHER = f"<tool_call>\n{WEATHER}\n</tool_call>"
QWEN_CLOCK = f"<tool_call>\n{CLOCK}\n</tool_call>"
FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<", "</", "<tool", "; ", ";", "}"),
    *(" ", "\n", "\n\n", "a", "so, ", "{", '{"name": ', '{"name": "weather", ', '"arguments": {', '{"answer": 1}'),
    *(WEATHER, CLOCK, QWEN_WEATHER, QWEN_CLOCK, WEATHER[:30], WEATHER[:50], QWEN_WEATHER[:-5], WEATHER[:-1]),
    *('{"name": "nobody", "arguments": {}}', '{"arguments": {"a": 1}, "name": "clock"}', '{"name": "clock"}'),
    *('{"name": "clock", "arguments": null, "id": 5}', '{"name": "clock", "arguments": "{\\"a\\": 1}"}'),
    *('{"type": "function", "name": "clock", "parameters": {"a": 01}}', '{"name": "clock", "arguments": [1]}'),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=8).map("".join)


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text, and pieces of it."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


LATE = '<tool_call>{"name": "clock", "arguments": {"a": nil}}</tool_call>'


@settings(max_examples=60)
@example((LATE, [LATE]), "qwen", True, True, None)
@given(cut(), st.sampled_from([None, *FORMS]), st.booleans(), st.booleans(), st.sampled_from([None, 1]))
def test_where_a_text_is_cut_makes_no_difference(
    cut: tuple[str, list[str]], form: ToolForm | None, eager: bool, thinks: bool, most: int | None
) -> None:
    text, pieces = cut
    expected = read(parser(form, eager=eager, thinks=thinks, most=most), [text])
    assert read(parser(form, eager=eager, thinks=thinks, most=most), pieces) == expected
    assert read(parser(form, eager=eager, thinks=thinks, most=most), text) == expected


@given(TEXTS, st.sampled_from(FORMS))
def test_a_stream_says_the_same_as_the_whole_unless_a_call_breaks_off(text: str, form: ToolForm) -> None:
    streaming = parser(form)
    streamed, whole = read(streaming, text), read(parser(form, eager=False), [text])
    begun = sum(isinstance(part, Call) for part in streamed)
    if streaming.called or not begun:
        assert streamed == whole
    for part in whole:
        if isinstance(part, Arguments):
            assert isinstance(json.loads(part.text), dict)


@given(TEXTS, st.sampled_from(FORMS), st.booleans())
def test_without_a_call_every_character_is_content(text: str, form: ToolForm, eager: bool) -> None:
    parts = read(AnswerParser(tools=ToolCallParser(form, frozenset(), eager=eager)), text)
    assert content(parts) == text
    assert all(isinstance(part, Content) for part in parts)


@given(st.lists(st.sampled_from([QWEN_WEATHER, QWEN_CLOCK, "word", " ", "\n", "<tool", "{}"]), max_size=6))
def test_calls_are_taken_out_of_the_text_and_nothing_else(fragments: list[str]) -> None:
    parts = read(parser("qwen"), "".join(fragments))
    plain = "".join(fragment for fragment in fragments if fragment not in (QWEN_WEATHER, QWEN_CLOCK))
    assert "".join(content(parts).split()) == "".join(plain.split())
    names = {QWEN_WEATHER: "weather", QWEN_CLOCK: "clock"}
    called = [names[fragment] for fragment in fragments if fragment in names]
    assert [part.name for part in parts if isinstance(part, Call)] == called


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("qwen", QWEN_WEATHER, call(0, "weather", WEATHER_ARGUMENTS)),
        (
            "qwen",
            f"Let me see.\n{QWEN_WEATHER}\n{QWEN_CLOCK}\n",
            [Content("Let me see."), *call(0, "weather", WEATHER_ARGUMENTS), *call(1, "clock", "{}")],
        ),
        ("qwen", f"<tool_call>{CLOCK[:-1]}</tool_call> ok", [*call(0, "clock", "{}"), Content(" ok")]),
        ("qwen", f"<tool_call>{CLOCK}", call(0, "clock", "{}")),
        ("llama3", '{"name": "clock", "parameters": {"a": 1}}', call(0, "clock", '{"a": 1}')),
        ("llama3", f"\n<|python_tag|>{CLOCK}; {CLOCK}", [*call(0, "clock", "{}"), *call(1, "clock", "{}")]),
        (
            "llama3",
            '{"type": "function", "name": "clock", "parameters": {"a": {}}}',
            call(0, "clock", '{"a": {}}'),
        ),
        ("llama3", f"Well: {CLOCK}", [Content(f"Well: {CLOCK}")]),
        ("llama3", f"Well: <|python_tag|>{CLOCK}", [Content("Well:"), *call(0, "clock", "{}")]),
        ("llama3", '{"arguments": {"a":\n1}, "name": "clock"}', call(0, "clock", '{"a":\n1}')),
        ("llama3", '{"name": "clock", "arguments": "{\\"a\\": 1}"}', call(0, "clock", '{"a": 1}')),
        ("llama3", '{"name": "clock"}', call(0, "clock", "{}")),
    ],
)
@pytest.mark.parametrize("eager", [False, True])
def test_calls(form: ToolForm, text: str, expected: list[Part], eager: bool) -> None:
    read_by = parser(form, eager=eager)
    assert read(read_by, text) == expected
    assert read_by.called is any(isinstance(part, Call) for part in expected)


@pytest.mark.parametrize(
    "block",
    [
        "{'name': 'clock', 'arguments': {}}",
        '{"name": "clock", "arguments": {\'a\': 1}}',
        '{"name": "clock", "arguments": {a: 1}}',
        '{"name": "nobody", "arguments": {}}',
        '{"name": "clock", "arguments": [1]}',
        '{"name": "clock", "arguments": "no object"}',
        '{"name": "clock", "arguments": "{\\"a\\": \\"\\ud800\\"}"}',
        '{"name": 5, "arguments": {}}',
        '{"function": "clock"}',
        '"clock"',
        "",
    ],
)
@pytest.mark.parametrize("eager", [False, True])
def test_a_botched_call_is_content(block: str, eager: bool) -> None:
    text = f"Now: <tool_call>\n{block}\n</tool_call>"
    botched = parser("qwen", eager=eager)
    assert read(botched, text) == [Content(text)]
    assert not botched.called


def test_a_call_that_breaks_off_late_is_content_unless_its_beginning_was_given_away() -> None:
    assert read(parser("qwen", eager=False), [LATE]) == [Content(LATE)]
    streaming = parser("qwen")
    assert read(streaming, [LATE]) == [*call(0, "clock", '{"a": n'), Content("il}}</tool_call>")]
    assert not streaming.called


def test_a_stream_gives_the_name_first_and_then_the_arguments_as_they_come() -> None:
    streaming = parser("qwen")
    pieces = ['<tool_call>{"name": "weather", "arg', 'uments": {"ci', 'ty": "Zü', 'rich"}', "}\n</tool_call>"]
    assert [streaming.push(piece) for piece in pieces] == [
        [],
        [Call(0, "weather"), Arguments(0, '{"ci')],
        [Arguments(0, 'ty": "Zü')],
        [Arguments(0, 'rich"}')],
        [],
    ]
    assert streaming.finish() == []


def test_an_unfinished_call_at_the_end_of_the_answer() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {"a": "b'
    assert read(parser("qwen", eager=False), [text]) == [Content(text)]
    streaming = parser("qwen")
    assert read(streaming, [text]) == call(0, "clock", '{"a": "b')
    assert not streaming.called


def test_no_more_calls_than_are_wanted() -> None:
    for eager in (False, True):
        assert read(parser("qwen", eager=eager, most=1), QWEN_CLOCK + QWEN_WEATHER) == call(0, "clock", "{}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHm.\n\nSo.\n</think>\n\nYes.\n", [Thought("Hm.\n\nSo."), Content("Yes.\n")]),
        ("\n<think>x</think>", [Thought("x")]),
        ("<think>\n\n</think>\n\nYes", [Content("Yes")]),
        ("<think>\nHm. </thin", [Thought("Hm. </thin")]),
        ("Yes <think>no</think>", [Content("Yes <think>no</think>")]),
        (" <thin", [Content(" <thin")]),
        ("<think>a</think>b</think>", [Thought("a"), Content("b</think>")]),
        (f"<think>{QWEN_CLOCK}</think>{QWEN_CLOCK}", [Thought(QWEN_CLOCK), *call(0, "clock", "{}")]),
    ],
)
def test_thoughts(text: str, expected: list[Part]) -> None:
    assert read(parser("qwen", thinks=True), text) == expected


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=30)
@given(st.lists(JSON) | st.dictionaries(st.text(), JSON) | st.text(), st.booleans(), st.sampled_from([None, 1]))
def test_every_json_value_is_read_to_its_end(value: Any, ascii_only: bool, indent: int | None) -> None:
    reader = JsonText()
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for index, character in enumerate(text):
        assert reader.expects is not Expects.NOTHING
        assert reader.push(character), text[: index + 1]
    assert reader.expects is Expects.NOTHING and reader.depth == 0


@given(st.text(alphabet='{}[]",:\\u0019-+.eE trufalsn\n', max_size=12).map(lambda text: "[" + text))
def test_what_is_read_to_its_end_is_json(text: str) -> None:
    reader = JsonText()
    read = ""
    for character in text:
        if reader.expects is Expects.NOTHING or not reader.push(character):
            break
        read += character
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        assert text[:end] == read and reader.expects is Expects.NOTHING
    except ValueError:
        assert reader.expects is not Expects.NOTHING
