"""What request bodies mean, and how wrong ones are refused: by the name of the field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl import grammar
from minisgl.core.sampling import SamplingParams
from minisgl.server.body import parse
from minisgl.server.dialect import Dialect
from minisgl.server.errors import ApiError
from minisgl.server.frontend import Prompt
from minisgl.server.openai_types import ChatRequest, CompletionRequest

PLAIN, TALK = SamplingParams(), Dialect()

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
SCHEMA = {"name": "answer", "schema": {"type": "object"}}


def called(**function: Any) -> dict[str, Any]:
    """An assistant's message with a call of this function."""
    return {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": {"name": "f"} | function}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "clock"} | function}


def deep(levels: int) -> dict[str, Any]:
    """An object in an object in an object..."""
    return {} if levels == 1 else {"a": deep(levels - 1)}


def chat(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"model": "m", "messages": [USER]} | fields).encode(), ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), CompletionRequest)


def refusal(body: bytes, kind: type[ChatRequest | CompletionRequest] = ChatRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, kind)
    assert caught.value.status == 400
    assert caught.value.kind == "invalid_request_error"
    return caught.value


def test_defaults_are_openais() -> None:
    assert chat().params(PLAIN, TALK) == SamplingParams(max_tokens=None)
    assert completion().params(PLAIN, TALK) == SamplingParams(max_tokens=16)


def test_every_parameter_reaches_the_sampling_parameters() -> None:
    fields: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.25,
        "logit_bias": {"5": -100, "0": 0.5},
        "seed": 7,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
    }
    expected = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-1.0,
        repetition_penalty=1.25,
        logit_bias=((5, -100.0), (0, 0.5)),
        seed=7,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
    )
    assert chat(**fields).params(PLAIN, TALK) == expected
    assert completion(**fields).params(PLAIN, TALK) == expected


def test_equivalent_forms() -> None:
    assert chat(max_completion_tokens=9).params(PLAIN, TALK).max_tokens == 9
    assert chat(max_tokens=9, max_completion_tokens=9).params(PLAIN, TALK).max_tokens == 9
    assert chat(stop="x").params(PLAIN, TALK).stop == ("x",)
    assert chat(top_k=-1).params(PLAIN, TALK) == chat(top_k=0).params(PLAIN, TALK) == chat().params(PLAIN, TALK)
    assert chat(temperature=1e-9).params(PLAIN, TALK).greedy
    assert chat(seed=-1).params(PLAIN, TALK).seed == 2**63 - 1
    assert chat(temperature=None, stop=None, seed=None, stream=None, user=None).params(
        PLAIN, TALK
    ) == chat().params(PLAIN, TALK)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", [Prompt(text="a")]),
        (["a", "b"], [Prompt(text="a"), Prompt(text="b")]),
        ([1, 2], [Prompt(token_ids=[1, 2])]),
        ([[1], [2, 3]], [Prompt(token_ids=[1]), Prompt(token_ids=[2, 3])]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: Any, prompts: list[Prompt]) -> None:
    assert completion(prompt=prompt).prompts() == prompts


def test_messages_become_what_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        # As the client library gives an answer back:
        {"role": "assistant", "content": "ab", "refusal": None, "tool_calls": None, "annotations": []},
        USER,
    ]
    assert chat(messages=messages).prompts()[0].messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "ann"},
        {"role": "assistant", "content": "ab"},
        USER,
    ]


@pytest.mark.parametrize(
    ("name", "neutral", "meant"),
    [
        ("functions", [], [{"name": "f"}]),
        ("modalities", ["text"], ["audio"]),
        ("store", False, True),
        ("min_tokens", 0, 5),
        ("skip_special_tokens", True, False),
        ("structured_outputs", None, {"json": {}}),
    ],
)
def test_parameters_not_served_are_accepted_only_when_they_ask_nothing(
    name: str, neutral: Any, meant: Any
) -> None:
    assert (
        chat(**{name: neutral}).params(PLAIN, TALK)
        == chat(**{name: None}).params(PLAIN, TALK)
        == chat().params(PLAIN, TALK)
    )
    error = refusal(json.dumps({"model": "m", "messages": [USER], name: meant}).encode())
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f'"{name}" is not supported' in error.message


@pytest.mark.parametrize(("name", "meant"), [("best_of", 2), ("suffix", "x"), ("min_tokens", 1)])
def test_completion_parameters_not_served(name: str, meant: Any) -> None:
    completion(**{name: None})
    error = refusal(json.dumps({"model": "m", "prompt": "a", name: meant}).encode(), CompletionRequest)
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -0.1}, "temperature", "-0.1"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", '"hot"'),
        ({"temperature": True}, "temperature", "true"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.1}, "top_p", "1.1"),
        ({"top_k": -2}, "top_k", "-2"),
        ({"min_p": 2}, "min_p", "2"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 1.5}, "max_tokens", "1.5"),
        ({"max_tokens": 10**40}, "max_tokens", "2147483647"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "mean the same"),
        ({"seed": 2**63}, "seed", "9223372036854775807"),
        ({"stop": ""}, "stop[0]", "at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": ["a" * 1025]}, "stop[0]", "at most 1024"),
        ({"stop": 5}, "stop", "a string or a list of strings"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "-1"),
        ({"stream": "yes"}, "stream", '"yes"'),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"stream": True, "stream_options": {"usage": 1}}, "stream_options.usage", "not a known parameter"),
        ({"model": None}, "model", "null"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", '"hi"'),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing"),
        ({"messages": [USER | {"tool_call_id": "c"}]}, "messages[0].tool_call_id", 'the role "tool"'),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages[0].tool_calls", 'the role "assistant"'),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content", "missing"),
        (
            {"messages": [called(arguments='{"a": ')]},
            "messages[0].tool_calls[0].function.arguments",
            "not valid JSON",
        ),
        ({"messages": [called(arguments="[]")]}, "messages[0].tool_calls[0].function.arguments", "an object"),
        ({"messages": [called(arguments={})]}, "messages[0].tool_calls[0].function.arguments", "a string"),
        (
            {"messages": [called(arguments='{"a":' * 100 + "1" + "}" * 100)]},
            "messages[0].tool_calls[0].function.arguments",
            "64 levels",
        ),
        ({"messages": [USER, {"role": "x", "content": "x"}]}, "messages[1].role", '"x"'),
        ({"messages": [USER | {"colour": 1}]}, "messages[0].colour", "not a known parameter"),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "missing"),
        (
            {"messages": [USER | {"tool_calls": [CALL | {"custom": {}}]}]},
            "messages[0].tool_calls[0].custom",
            "not",
        ),
        ({"n": 0}, "n", "0"),
        ({"n": 129}, "n", "128"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-3"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"repetition_penalty": 2.5}, "repetition_penalty", "2.5"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"logit_bias": {"a": 1}}, "logit_bias", '"a" is not a token id'),
        ({"logit_bias": {"-1": 1}}, "logit_bias", '"-1"'),
        ({"logit_bias": {"05": 1}}, "logit_bias", '"05"'),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "999"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias", "token 5"),
        ({"logit_bias": {"5": True}}, "logit_bias", "token 5"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias", "301"),
        ({"logprobs": 5}, "logprobs", "5"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"top_logprobs": 1}, "top_logprobs", "logprobs: true"),
        ({"response_format": "json"}, "response_format", "an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", '"xml"'),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_object", "json_schema": SCHEMA}},
            "response_format.json_schema",
            'type "json_schema"',
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA | {"name": "a b"}}},
            "response_format.json_schema.name",
            "pattern",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA | {"schema": deep(65)}}},
            "response_format.json_schema.schema",
            "64 levels",
        ),
        ({"tools": {}}, "tools", "list"),
        ({"tools": [{}]}, "tools[0].type", "missing"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom", "not supported"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(), tool()]}, "tools", '"clock"'),
        ({"tools": [tool(name=f"f{number}") for number in range(129)]}, "tools", "at most 128"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "an object"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters", "object"),
        ({"tools": [tool(parameters=deep(65))]}, "tools[0].function.parameters", "64 levels"),
        ({"tools": [tool(parameters={"a": "x" * 300_000})]}, "tools[0].function.parameters", "262144"),
        ({"tools": [tool(parameters={"a": {"b": 2**64}})]}, "tools[0].function.parameters", "64 bits"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", '"yes"'),
        ({"tools": [tool()], "tool_choice": "sometimes"}, "tool_choice", "required"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
            '"x" is not among the tools',
        ),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name", '"x"'),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "allowed_tools"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [tool()], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
            "tool_choice demands",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "1"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", '"huge"'),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "an object"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages cannot be set"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "tools cannot be set"),
        ({"chat_template_kwargs": deep(65)}, "chat_template_kwargs", "64 levels"),
        ({"chat_template_kwargs": {"a": 10**30}}, "chat_template_kwargs", "64 bits"),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "low"},
            "chat_template_kwargs",
            "reasoning_effort cannot be set",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].image_url",
            "not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "poem", "text": "x"}]}]},
            "messages[0].content[0].type",
            '"poem"',
        ),
        ({"best_of": 1}, "best_of", "not a known parameter"),
        ({"echo": True}, "echo", "only false"),
        ({"str": 1}, "str", "not a known parameter"),
        ({"x" * 500: 1}, "x" * 80, "not a known parameter"),
    ],
)
def test_a_bad_chat_field_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(json.dumps({"model": "m", "messages": [USER]} | fields).encode())
    assert error.param == param
    assert words in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"logprobs": True}, "logprobs", "true"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"echo": 1}, "echo", "1"),
        ({"best_of": 2}, "best_of", "only 1"),
        ({"best_of": 1, "n": 2}, "best_of", "only 2"),
        ({"response_format": {"type": "xml"}}, "response_format.type", '"xml"'),
        ({"tools": []}, "tools", "not a known parameter"),
    ],
)
def test_a_bad_completion_field_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), CompletionRequest)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        (None, "prompt"),
        (3, "prompt"),
        ([[]], "prompt[0]"),
        (["a", 1], "prompt[1]"),
        ([1, "a"], "prompt[0][1]"),
        ([-1], "prompt[0][0]"),
        ([2**40], "prompt[0][0]"),
        ([[1], "a"], "prompt[0]"),
    ],
)
def test_a_bad_prompt_is_named(prompt: Any, param: str) -> None:
    error = refusal(json.dumps({"model": "m", "prompt": prompt}).encode(), CompletionRequest)
    assert error.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"model": "m", "prompt": "x", "temperature": NaN}',
        b'{"model": "m", "prompt": "x", "temperature": Infinity}',
        b'{"model": "m", "prompt": "x", "temperature": 1e999}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "prompt": "\xff"}',
        b'{"model": "m", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "m", "prompt": "x"} and more',
    ],
)
def test_what_is_no_good_json_is_refused(body: bytes) -> None:
    refusal(body, CompletionRequest)


def test_a_million_errors_cost_no_more_than_one() -> None:
    many: list[Any] = [{f"x{number}": 1 for number in range(100_000)}, {"prompt": [-1] * 200_000}]
    many.append({"prompt": ["a"] + [1] * 200_000})
    many.append({"logit_bias": {f"x{number}": 1 for number in range(100_000)}})
    many.append({"response_format": {"type": {f"x{number}": 1 for number in range(100_000)}}})
    for fields in many:
        error = refusal(json.dumps({"model": "m", "prompt": "x"} | fields).encode(), CompletionRequest)
        assert len(error.message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from([*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatRequest.NEUTRAL])


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_any_object_is_a_request_or_a_named_error(fields: dict[str, Any]) -> None:
    kinds: tuple[type[ChatRequest | CompletionRequest], ...] = (ChatRequest, CompletionRequest)
    for kind in kinds:
        with contextlib.suppress(ApiError):
            request = parse(json.dumps({"model": "m"} | fields).encode(), kind)
            assert request.prompts() and isinstance(request.params(PLAIN, TALK), SamplingParams)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse(body, ChatRequest)


def test_what_the_model_recommends_is_the_default() -> None:
    recommended = SamplingParams(temperature=0.2, top_k=40, top_p=0.9, min_p=0.1)
    params = chat().params(recommended, TALK)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.2, 40, 0.9, 0.1)
    params = completion(temperature=1, top_k=0, top_p=1, min_p=0).params(recommended, TALK)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)


def test_log_probabilities_are_asked_for_as_each_endpoint_does() -> None:
    assert chat(logprobs=True).params(PLAIN, TALK).logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).params(PLAIN, TALK).logprobs == 20
    assert chat(logprobs=False, top_logprobs=0).params(PLAIN, TALK).logprobs is None
    params = completion(logprobs=3).params(PLAIN, TALK)
    assert (params.logprobs, params.prompt_logprobs) == (3, False)
    params = completion(logprobs=0, echo=True).params(PLAIN, TALK)
    assert (params.logprobs, params.prompt_logprobs) == (0, True)
    assert not completion(echo=True).params(PLAIN, TALK).prompt_logprobs


def test_a_model_may_recommend_a_repetition_penalty() -> None:
    recommended = SamplingParams(repetition_penalty=1.1)
    assert chat().params(recommended, TALK).repetition_penalty == 1.1
    assert chat(repetition_penalty=1).params(recommended, TALK).repetition_penalty == 1.0


def test_answers_that_are_wanted() -> None:
    assert (chat().copies, chat(n=None).copies, chat(n=128).copies) == (1, 1, 128)
    assert completion(n=2, best_of=2).copies == 2


def test_calls_in_the_history_become_what_templates_know() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
    ]
    assert chat(messages=messages).prompts()[0].messages == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
            ],
        },
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]
    assert chat(messages=[called(arguments="")]).messages[0].for_template()["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": {},
    }


def test_what_the_template_is_told() -> None:
    offered = tool(description="tells the time", parameters={"properties": {}}, strict=True)
    assert chat().prompts()[0].template == {}
    (prompt,) = chat(
        tools=[offered], chat_template_kwargs={"a": [1]}, reasoning_effort="low", tool_choice="auto"
    ).prompts()
    function = {"name": "clock", "description": "tells the time", "parameters": {"properties": {}}}
    tools = [{"type": "function", "function": function}]
    assert prompt.template == {"a": [1], "reasoning_effort": "low", "tools": tools}
    assert chat(tools=[offered], tool_choice="none").prompts()[0].template == {}


def test_tools_need_a_model_that_calls_them() -> None:
    with pytest.raises(ApiError, match="no tool calls") as caught:
        chat(tools=[tool()]).params(PLAIN, TALK)
    assert caught.value.param == "tools"
    assert chat(tools=[tool()], tool_choice="none").params(PLAIN, TALK) == chat().params(PLAIN, TALK)


def test_the_grammar_of_an_answer() -> None:
    qwen = Dialect(tools="qwen", thinks=True)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    formatted = {"response_format": {"type": "json_schema", "json_schema": SCHEMA | {"schema": schema}}}
    awake = {"chat_template_kwargs": {"enable_thinking": False}}
    assert chat(**formatted).params(PLAIN, TALK).grammar == grammar.json_schema(schema)
    assert chat(**formatted).params(PLAIN, qwen).grammar == grammar.json_schema(schema, thinks=True)
    assert chat(**formatted, **awake).params(PLAIN, qwen).grammar == grammar.json_schema(schema)
    assert completion(**formatted).params(PLAIN, qwen).grammar == grammar.json_schema(schema)
    assert chat(response_format={"type": "json_object"}).params(PLAIN, TALK).grammar == grammar.json_object()
    assert chat(response_format={"type": "text"}).params(PLAIN, qwen).grammar == ""

    none = {"type": "object", "properties": {}, "additionalProperties": False}
    either = chat(tools=[tool()], **formatted)
    assert either.params(PLAIN, qwen).grammar == grammar.tool_calls(
        "qwen", [("clock", none)], parallel=True, thinks=True, otherwise=schema
    )
    with pytest.raises(ApiError, match="calls as JSON") as caught:
        chat(tools=[tool()], **formatted).params(PLAIN, Dialect(tools="llama3"))
    assert caught.value.param == "response_format"
    assert chat(tools=[tool()], tool_choice="none", **formatted).params(PLAIN, TALK).grammar == (
        grammar.json_schema(schema)
    )
    tools = [tool(), tool(name="f", parameters={"properties": {"a": {}}})]
    functions: list[tuple[str, dict[str, Any]]] = [
        ("clock", none),
        ("f", {"type": "object", "properties": {"a": {}}}),
    ]
    assert chat(tools=tools).params(PLAIN, qwen).grammar == ""
    required = chat(tools=tools, tool_choice="required")
    assert required.params(PLAIN, qwen).grammar == grammar.tool_calls(
        "qwen", functions, parallel=True, thinks=True
    )
    assert required.prompts()[0].grammar_name == "tools"
    single = chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert single.params(PLAIN, Dialect(tools="llama3")).grammar == grammar.tool_calls(
        "llama3", functions, parallel=False, thinks=False
    )
    named = chat(tools=tools, tool_choice={"type": "function", "function": {"name": "f"}}, **awake)
    assert named.params(PLAIN, qwen).grammar == grammar.tool_calls(
        "qwen", functions[1:], parallel=False, thinks=False
    )
