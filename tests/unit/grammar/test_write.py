"""Which texts the grammars allow, by llguidance itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from minisgl.grammar import ToolForm, behind_prompt, json_object, json_schema, tool_calls
from minisgl.grammar.compiler import Compiler, failure
from minisgl.grammar.vocabulary import Vocabulary
from minisgl.tokenizer.text import TextTokenizer
from support.json_schemas import SCHEMAS

BYTES = Compiler(Vocabulary([bytes([value]) for value in range(256)], frozenset()))

AB = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def fits(grammar: str, text: str) -> bool:
    matcher = BYTES.build(grammar)
    assert failure(matcher) is None
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":[]}',
        '{"a": -12, "b": ["x", "ü\\n"]}',
        '{\n  "a": 1,\n  "b": [\n    "x"\n  ]\n}',
        '{ "a" : 1 , "b" : [ ] }',
    ],
)
def test_json_in_its_usual_layouts(text: str) -> None:
    assert fits(json_schema(AB), text)
    assert fits(json_object(), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ' {"a":1,"b":[]}',
        '{"a":1,"b":[]} ',
        '{"a":1,"b":[]}{"a":1,"b":[]}',
        '{"a":1}',
        '{"b":[],"a":1}',
        '{"a":1,"b":[],"c":2}',
        '{"a":"1","b":[]}',
        '{"a":1,  "b":[]}',
        '{"a":1,\n\n"b":[]}',
        '{"a":1,\n' + " " * 25 + '"b":[]}',
        '{"a":1,"b":["\n"]}',
        '<think>x</think>{"a":1,"b":[]}',
    ],
)
def test_what_fits_no_schema(text: str) -> None:
    assert not fits(json_schema(AB), text)


def test_any_object_and_nothing_else() -> None:
    assert fits(json_object(), '{"x": [1, {"y": null}], "z": "é\\u0007"}')
    for text in ("[1]", "1", '"x"', "null", "{", '{"x": }'):
        assert not fits(json_object(), text)


def test_a_client_cannot_change_how_its_schema_is_read() -> None:
    lenient = {"x-guidance": {"lenient": True, "whitespace_flexible": True}, "type": "object", "not": {}}
    assert BYTES.refusal(json_schema(lenient)) == 'Unimplemented keys: ["not"]'


@pytest.mark.parametrize(
    "thought",
    [
        "",
        "<think>\nHm, {1} or [2]?\n</think>\n\n",
        "<think></think>",
        "\nThe prompt has opened it. <b>\n</think>\n\n",
        "\n</think>\n",
        "</think>",
        "<think>a <tool_call> b</think>\n\n",
    ],
)
@pytest.mark.parametrize("answer", ['{"a":1,"b":[]}', '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'])
def test_a_thought_may_come_first(thought: str, answer: str) -> None:
    tools = [("f", {"type": "object"})]
    grammars = [json_schema(AB, thinks=True), tool_calls("qwen", tools, parallel=False, thinks=True)]
    for grammar, own in zip(grammars, (answer.startswith("{"), answer.startswith("<")), strict=True):
        assert fits(grammar, thought + answer) == own
        assert not fits(grammar, thought + "Well")
        assert not thought or not fits(grammar, thought)
    plain = [json_schema(AB), tool_calls("qwen", tools, parallel=False, thinks=False)]
    assert any(fits(grammar, thought + answer) for grammar in plain) == (not thought)


def test_an_answer_that_begins_without_a_thought_follows_the_grammar_at_once() -> None:
    matcher = BYTES.build(json_schema(AB, thinks=True))
    assert matcher.try_consume_tokens(list(b'{"c')) == 2


def test_an_answer_that_has_a_form_may_be_a_call_instead() -> None:
    grammar = tool_calls("qwen", [("f", {})], parallel=True, thinks=False, otherwise=AB)
    assert fits(grammar, '{"a":1,"b":[]}') and fits(grammar, call("qwen", "f", "{}"))
    assert not fits(grammar, '{"a":"x"}') and not fits(grammar, "Well")
    assert not fits(grammar, call("qwen", "f", "{}") + '{"a":1,"b":[]}')
    with pytest.raises(ValueError, match="JSON too"):
        tool_calls("llama3", [("f", {})], parallel=True, thinks=False, otherwise=AB)


def test_whether_the_prompt_has_opened_the_thought_is_known_in_the_end() -> None:
    for grammar, answer in (
        (json_schema(AB, thinks=True), '{"a":1,"b":[]}'),
        (tool_calls("qwen", [("f", {})], parallel=False, thinks=True), call("qwen", "f", "{}")),
    ):
        closed, opened = behind_prompt(grammar, opened=False), behind_prompt(grammar, opened=True)
        assert fits(closed, answer) and fits(closed, f"<think>\nHm: {answer}</think>\n\n{answer}")
        assert not fits(closed, f"Hm</think>{answer}") and not fits(closed, f"</think>{answer}")
        for thought in ("", "Hm", "\n", answer, "<think>"):
            assert fits(opened, f"{thought}</think>\n\n{answer}")
        assert not fits(opened, answer)
    assert behind_prompt(json_schema(AB), opened=True) == json_schema(AB)


WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Lima"]}},
}
TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("weather", WEATHER),
    ("weather_now", WEATHER),
    ("stop", {"properties": {}, "additionalProperties": False}),
]


def call(form: ToolForm, name: str, arguments: str) -> str:
    if form == "llama3":
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(("form", "between"), [("qwen", "\n"), ("llama3", "; ")])
def test_calls(form: ToolForm, between: str) -> None:
    one = tool_calls(form, TOOLS, parallel=False, thinks=False)
    several = tool_calls(form, TOOLS, parallel=True, thinks=False)
    good = [
        call(form, "weather", '{"city": "Paris"}'),
        call(form, "weather_now", '{"city":"Lima"}'),
        call(form, "stop", "{}"),
    ]
    for text in good:
        assert fits(one, text) and fits(several, text)
    assert fits(several, between.join(good)) and not fits(one, between.join(good))
    for text in (
        "",
        "Hello",
        call(form, "weather", "{}"),
        call(form, "weather", '{"city": "Rome"}'),
        call(form, "wea", '{"city": "Paris"}'),
        call(form, "stop", '"x"'),
        good[0] + between,
        good[0][:-1],
        good[0] + good[1],
        between.join([good[0], "Hello"]),
    ):
        assert not fits(several, text), text


def test_a_name_is_quoted_whatever_it_holds() -> None:
    grammar = tool_calls("llama3", [('a"\\é\n', {})], parallel=False, thinks=False)
    assert fits(grammar, '{"name": "a\\"\\\\\\u00e9\\n", "parameters": {}}')
    assert not fits(grammar, '{"name": "a\\"\\\\\\u00e9\\n", "parameters": 1}')


def test_there_is_something_to_call() -> None:
    with pytest.raises(ValueError):
        tool_calls("qwen", [], parallel=True, thinks=False)


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> tuple[Compiler, TextTokenizer]:
    return Compiler.load(str(smollm2), size=49152, eos_ids=[2]), TextTokenizer.load(str(smollm2))


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_whatever_a_model_chooses_fits_the_schema(smol: tuple[Compiler, TextTokenizer], index: int) -> None:
    """Random choices among the real model's tokens: every answer ends, and is what the schema asks for."""
    draw = random.Random(index)
    compiler, tokenizer = smol
    matcher = compiler.build(json_schema(SCHEMAS[index]))
    tokens: list[int] = []
    while not tokens or tokens[-1] != 2:
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        assert failure(matcher) is None
        start = draw.randrange(49152)
        rest = allowed >> start << start or allowed
        tokens.append((rest & -rest).bit_length() - 1)
        assert matcher.consume_token(tokens[-1])
        assert len(tokens) < 400
    answer = json.loads(tokenizer.decode(tokens))
    jsonschema.validate(answer, SCHEMAS[index], jsonschema.Draft202012Validator)


def test_there_are_fifty_schemas_of_growing_size() -> None:
    sizes = [len(json.dumps(schema)) for schema in SCHEMAS]
    assert len(sizes) == 50 and sizes == sorted(sizes) and sizes[-1] > 10 * sizes[0]
    for schema in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)
