"""What request bodies mean, and how wrong ones are refused: by the name of the field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.core.sampling import SamplingParams
from minisgl.server.body import parse
from minisgl.server.errors import ApiError
from minisgl.server.frontend import Prompt
from minisgl.server.openai_types import ChatRequest, CompletionRequest

PLAIN = SamplingParams()

USER = {"role": "user", "content": "hi"}


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
    assert chat().params(PLAIN) == SamplingParams(max_tokens=None)
    assert completion().params(PLAIN) == SamplingParams(max_tokens=16)


def test_every_parameter_reaches_the_sampling_parameters() -> None:
    fields: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
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
        seed=7,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
    )
    assert chat(**fields).params(PLAIN) == expected
    assert completion(**fields).params(PLAIN) == expected


def test_equivalent_forms() -> None:
    assert chat(max_completion_tokens=9).params(PLAIN).max_tokens == 9
    assert chat(max_tokens=9, max_completion_tokens=9).params(PLAIN).max_tokens == 9
    assert chat(stop="x").params(PLAIN).stop == ("x",)
    assert chat(top_k=-1).params(PLAIN) == chat(top_k=0).params(PLAIN) == chat().params(PLAIN)
    assert chat(temperature=1e-9).params(PLAIN).greedy
    assert chat(seed=-1).params(PLAIN).seed == 2**63 - 1
    assert chat(temperature=None, stop=None, seed=None, stream=None, user=None).params(
        SamplingParams()
    ) == chat().params(PLAIN)


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
        ("n", 1, 2),
        ("presence_penalty", 0, 0.5),
        ("frequency_penalty", 0.0, -1),
        ("repetition_penalty", 1.0, 1.1),
        ("logit_bias", {}, {"5": 1}),
        ("logprobs", False, True),
        ("top_logprobs", 0, 3),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("tools", [], [{"type": "function"}]),
        ("tool_choice", "none", "required"),
        ("functions", [], [{"name": "f"}]),
        ("modalities", ["text"], ["audio"]),
        ("store", False, True),
        ("chat_template_kwargs", {}, {"enable_thinking": False}),
        ("reasoning_effort", None, "high"),
    ],
)
def test_parameters_not_served_are_accepted_only_when_they_ask_nothing(
    name: str, neutral: Any, meant: Any
) -> None:
    assert chat(**{name: neutral}).params(PLAIN) == chat(**{name: None}).params(PLAIN) == chat().params(PLAIN)
    error = refusal(json.dumps({"model": "m", "messages": [USER], name: meant}).encode())
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f'"{name}" is not supported' in error.message


@pytest.mark.parametrize(("name", "meant"), [("echo", True), ("best_of", 2), ("suffix", "x"), ("logprobs", 0)])
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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", '"tool"'),
        ({"messages": [USER, {"role": "x", "content": "x"}]}, "messages[1].role", '"x"'),
        ({"messages": [USER | {"colour": 1}]}, "messages[0].colour", "not a known parameter"),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls", "not supported"),
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
    for fields in many:
        error = refusal(json.dumps({"model": "m", "prompt": "x"} | fields).encode(), CompletionRequest)
        assert len(error.message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from([*ChatRequest.model_fields, *ChatRequest.NEUTRAL, "prompt"])


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_any_object_is_a_request_or_a_named_error(fields: dict[str, Any]) -> None:
    kinds: tuple[type[ChatRequest | CompletionRequest], ...] = (ChatRequest, CompletionRequest)
    for kind in kinds:
        with contextlib.suppress(ApiError):
            request = parse(json.dumps({"model": "m"} | fields).encode(), kind)
            assert request.prompts() and isinstance(request.params(PLAIN), SamplingParams)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse(body, ChatRequest)


def test_what_the_model_recommends_is_the_default() -> None:
    recommended = SamplingParams(temperature=0.2, top_k=40, top_p=0.9, min_p=0.1)
    params = chat().params(recommended)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.2, 40, 0.9, 0.1)
    params = completion(temperature=1, top_k=0, top_p=1, min_p=0).params(recommended)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
