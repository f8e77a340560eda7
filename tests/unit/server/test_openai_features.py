"""What the official client gets for each thing it can ask for, whole and as a stream, over scripted workers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from minisgl.grammar import json_object, json_schema, tool_calls
from minisgl.server.dialect import Dialect
from support.api_server import MODEL, ApiServer, api_server
from support.fake_workers import CACHED_TOKENS, LIMITS, PROMPT_TOKENS, wait_until

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server(max_queued_requests=4, dialect=Dialect(tools="qwen", thinks=True)) as server:
        yield server
        assert not server.frontend._in_flight, "a request was left behind"
        assert not server.frontend._open


@pytest.fixture(scope="module")
def plain() -> Iterator[ApiServer]:
    """A server whose model neither thinks nor calls tools."""
    with api_server() as server:
        yield server


def in_pieces(text: str) -> str:
    """As tokens of a script."""
    return "|".join(text[start : start + 5] for start in range(0, len(text), 5))


def ask(server: ApiServer, content: str, **fields: Any) -> ChatCompletion:
    """One chat completion, checked against the client's own types."""
    response = server.chat(content, **fields)
    assert response.status_code == 200, response.text
    return ChatCompletion.model_validate_json(response.text, strict=True)


def stream(server: ApiServer, content: str, **fields: Any) -> list[ChatCompletionChunk]:
    """The chunks of one, checked likewise."""
    response = server.chat(content, stream=True, **fields)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and lines.pop() == "[DONE]", response.text
    return [ChatCompletionChunk.model_validate_json(line, strict=True) for line in lines]


def gathered(chunks: Iterable[ChatCompletionChunk], index: int = 0) -> tuple[dict[str, Any], str | None]:
    """The message that the deltas of a choice make together, and the finish reason."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == index):
        assert reason is None, "news after the end"
        delta = choice.delta
        message["content"] += delta.content or ""
        message["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            assert call.function is not None
            if call.index == len(message["tool_calls"]):
                assert call.id is not None and call.id.startswith("call_") and call.type == "function"
                message["tool_calls"].append([call.function.name, ""])
            else:
                assert call.id is None and call.function.name is None
            message["tool_calls"][call.index][1] += call.function.arguments or ""
        reason = choice.finish_reason
    return message, reason


def whole(answer: ChatCompletion) -> tuple[dict[str, Any], str | None]:
    """The same of a whole answer."""
    message = answer.choices[0].message
    calls = []
    for call in message.tool_calls or ():
        assert call.type == "function" and call.id.startswith("call_")
        calls.append([call.function.name, call.function.arguments])
    thought = getattr(message, "reasoning_content", None)
    return {
        "content": message.content or "",
        "reasoning_content": thought or "",
        "tool_calls": calls,
    }, answer.choices[0].finish_reason


def both(server: ApiServer, content: str, **fields: Any) -> tuple[dict[str, Any], str | None]:
    """An answer, which must say the same whole and as a stream."""
    answer = whole(ask(server, content, **fields))
    assert gathered(stream(server, content, **fields)) == answer
    return answer


def refused(server: ApiServer, **fields: Any) -> tuple[str, str]:
    """The parameter that is named, and what is said of it."""
    seen = len(server.workers.requests)
    response = server.chat("x", **fields)
    assert response.status_code == 400, response.text
    assert len(server.workers.requests) == seen, "a bad request reached the workers"
    error = response.json()["error"]
    return error["param"], error["message"]


class TestSeveralAnswers:
    def test_chat(self, server: ApiServer) -> None:
        answer = ask(server, "a|<copy>", n=3, temperature=0)
        assert [choice.message.content for choice in answer.choices] == ["a0", "a1", "a2"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens == PROMPT_TOKENS
        assert answer.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
        assert answer.usage.completion_tokens == 3 * 3
        request = server.workers.last()
        assert (request.copies, request.params.greedy) == (3, True)

    def test_chat_stream(self, server: ApiServer) -> None:
        chunks = stream(server, "a|<copy>", n=3, stream_options={"include_usage": True})
        assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant"] * 3
        for index in range(3):
            assert gathered(chunks, index)[0]["content"] == f"a{index}"
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == PROMPT_TOKENS

    def test_completions(self, server: ApiServer) -> None:
        for best_of in (openai.omit, 2):
            answer = server.openai.completions.create(
                model=MODEL, prompt=["a|<copy>", "b|<copy>"], n=2, best_of=best_of
            )
            assert [choice.text for choice in answer.choices] == ["a0", "a1", "b0", "b1"]
            assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
            assert answer.usage is not None and answer.usage.prompt_tokens == 2 * PROMPT_TOKENS
        assert [request.copies for request in server.workers.requests[-2:]] == [2, 2]
        assert server.workers.requests[-1].uid - server.workers.requests[-2].uid in (2, -2)

    def test_too_many_for_the_queue(self, server: ApiServer) -> None:
        most = LIMITS.max_running_requests + 4
        assert len(ask(server, "a", n=most).choices) == most
        param, message = refused(server, n=most + 1)
        assert param == "n" and str(most) in message

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_refusal_is_of_all_of_them(self, server: ApiServer, streamed: bool) -> None:
        before = len(server.workers.aborted)
        assert server.chat("<reject>", n=3, stream=streamed).status_code == 400
        assert ask(server, "a").choices[0].message.content == "a"
        assert len(server.workers.aborted) == before

    @pytest.mark.parametrize("attempt", range(2))
    def test_a_client_that_leaves_aborts_all_at_one_tokenizer(self, server: ApiServer, attempt: int) -> None:
        user: Any = {"role": "user", "content": f"{attempt}|<hang>"}
        chunks = server.openai.chat.completions.create(model=MODEL, messages=[user], n=3, stream=True)
        next(iter(chunks))
        chunks.close()
        uids = [server.workers.last().uid + copy for copy in range(3)]
        wait_until(lambda: set(uids) <= set(server.workers.aborted_at))
        assert {server.workers.aborted_at[uid] for uid in uids} == {server.workers.tokenizer_of[uids[0]]}


class TestLogProbabilities:
    def test_chat(self, server: ApiServer) -> None:
        (choice,) = ask(server, "é|b", logprobs=True, top_logprobs=2).choices
        assert choice.logprobs is not None and choice.logprobs.content is not None
        first, second = choice.logprobs.content
        assert (first.token, first.bytes, first.logprob) == ("é", [0xC3, 0xA9], -0.5)
        assert [(top.token, top.bytes, top.logprob) for top in second.top_logprobs] == [
            ("A", [65], -1.0),
            ("B", [66], -2.0),
        ]
        assert server.workers.last().params.logprobs == 2

    def test_chat_without_alternatives(self, server: ApiServer) -> None:
        (choice,) = ask(server, "a", logprobs=True).choices
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert [token.top_logprobs for token in choice.logprobs.content] == [[]]
        assert ask(server, "a").choices[0].logprobs is None

    @pytest.mark.parametrize("text", ["a|b|c", in_pieces("<think>hm</think>yes" + CALL), "a||<length>"])
    def test_chat_stream_loses_none_and_says_none_twice(self, server: ApiServer, text: str) -> None:
        fields: dict[str, Any] = {"logprobs": True, "tools": [WEATHER]}
        expected = ask(server, text, **fields).choices[0].logprobs
        assert expected is not None and expected.content is not None
        tokens = []
        for chunk in stream(server, text, **fields):
            logprobs = chunk.choices[0].logprobs
            tokens += [] if logprobs is None else logprobs.content or []
        assert [token.token for token in tokens] == [token.token for token in expected.content]
        assert len(tokens) >= 3

    def test_completions(self, server: ApiServer) -> None:
        response = server.complete("ab|é|c", logprobs=2)
        (choice,) = Completion.model_validate_json(response.text, strict=True).choices
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["ab", "é", "c"]
        assert choice.logprobs.token_logprobs == [-0.5] * 3
        assert choice.logprobs.top_logprobs == [{"A": -1.0, "B": -2.0, token: -0.5} for token in ("ab", "é", "c")]
        assert choice.logprobs.text_offset == [0, 2, 3]
        assert server.complete("a").json()["choices"][0]["logprobs"] is None

    def test_completions_stream(self, server: ApiServer) -> None:
        chunks = server.openai.completions.create(model=MODEL, prompt="ab|é|c", logprobs=0, n=2, stream=True)
        offsets: dict[int, list[int]] = {0: [], 1: []}
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            assert choice.logprobs is not None and choice.logprobs.text_offset is not None
            offsets[choice.index] += choice.logprobs.text_offset
        assert offsets == {0: [0, 2, 3], 1: [0, 2, 3]}


class TestEcho:
    def test_whole(self, server: ApiServer) -> None:
        answer = server.openai.completions.create(model=MODEL, prompt="a|b", echo=True, n=2)
        assert [choice.text for choice in answer.choices] == ["a|bab", "a|bab"]
        assert server.workers.last().echo and not server.workers.last().params.prompt_logprobs

    @pytest.mark.parametrize("streamed", [False, True])
    def test_with_log_probabilities(self, server: ApiServer, streamed: bool) -> None:
        create = server.openai.completions.create
        answer = create(model=MODEL, prompt="a|b", echo=True, logprobs=1, stream=streamed)
        parts = [answer] if isinstance(answer, Completion) else list(answer)
        choices: list[Any] = [choice for part in parts for choice in part.choices]
        assert "".join(choice.text for choice in choices) == "a|bab"
        columns: dict[str, list[Any]] = {}
        for choice in choices:
            for name, column in choice.logprobs.model_dump().items():
                columns[name] = columns.get(name, []) + column
        assert columns == {
            "tokens": ["a|b", "a", "b"],
            "token_logprobs": [None, -0.5, -0.5],
            "top_logprobs": [None, {"A": -1.0, "a": -0.5}, {"A": -1.0, "b": -0.5}],
            "text_offset": [0, 3, 4],
        }
        assert server.workers.last().params.prompt_logprobs


class TestSampling:
    def test_what_shapes_the_choice_reaches_the_workers(self, server: ApiServer) -> None:
        fields: dict[str, Any] = {
            "presence_penalty": 1,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.5,
            "logit_bias": {"99": -100, "0": 2},
            "min_p": 0.2,
            "seed": 4,
            "stop_token_ids": [7],
            "ignore_eos": True,
        }
        for send in (server.chat, server.complete):
            assert send("a", **fields).status_code == 200
            params = server.workers.last().params
            assert (params.presence_penalty, params.frequency_penalty) == (1.0, -0.5)
            assert (params.repetition_penalty, params.min_p, params.seed) == (1.5, 0.2, 4)
            assert params.logit_bias == ((99, -100.0), (0, 2.0))
            assert (params.stop_token_ids, params.ignore_eos) == ((7,), True)

    def test_a_bias_of_a_token_that_there_is_not(self, server: ApiServer) -> None:
        param, message = refused(server, logit_bias={"3": 1, "100": 1})
        assert param == "logit_bias" and "100" in message and "0 to 99" in message


class TestResponseFormat:
    def test_reaches_the_workers_as_a_grammar(self, server: ApiServer) -> None:
        for response_format, grammar in (
            ({"type": "text"}, ""),
            ({"type": "json_object"}, json_object(thinks=True)),
            (SCHEMA, json_schema(PARAMETERS, thinks=True)),
        ):
            assert (
                ask(server, '{"a"|: 1}', response_format=response_format).choices[0].message.content == '{"a": 1}'
            )
            assert server.workers.last().params.grammar == grammar
            assert server.workers.last().grammar_name == "response_format"
        assert server.complete("a", response_format=SCHEMA).status_code == 200
        assert server.workers.last().params.grammar == json_schema(PARAMETERS)

    def test_a_grammar_that_explodes_is_the_clients_error(self, server: ApiServer) -> None:
        response = server.chat("a|<grammar>", response_format=SCHEMA)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("response_format", "grammar_too_complex")
        assert "after 2 tokens" in error["message"]
        with pytest.raises(openai.APIError, match="tools takes too much work"):
            list(
                server.openai.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "a|<grammar>"}],
                    tools=[{"type": "function", "function": {"name": "clock"}}],
                    tool_choice="required",
                    stream=True,
                )
            )

    def test_the_client_parses_the_answer(self, server: ApiServer) -> None:
        class Place(openai.BaseModel):
            city: str

        answer = server.openai.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": '{"city":| "Bern"}'}], response_format=Place
        )
        assert answer.choices[0].message.parsed == Place(city="Bern")
        assert '"city"' in server.workers.last().params.grammar


class TestTools:
    def test_a_call(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces("Let me see.\n" + CALL), tools=[WEATHER, CLOCK])
        assert message["content"] == "Let me see."
        assert message["tool_calls"] == [["weather", '{"city": "Zürich"}']]
        assert reason == "tool_calls"
        request = server.workers.last()
        assert request.template == {"tools": [WEATHER, CLOCK]}
        assert request.params.grammar == ""

    def test_only_a_call_has_no_content(self, server: ApiServer) -> None:
        answer = ask(server, CALL, tools=[WEATHER])
        assert answer.choices[0].message.content is None
        assert ask(server, "a", tools=[WEATHER]).choices[0].finish_reason == "stop"

    def test_arguments_come_as_they_are_written(self, server: ApiServer) -> None:
        chunks = stream(server, in_pieces(CALL), tools=[WEATHER])
        pieces = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
        first = pieces[0][0].function
        assert first is not None and (first.name, first.arguments) == ("weather", "")
        assert len(pieces) > 3

    def test_several_calls(self, server: ApiServer) -> None:
        text = in_pieces(f'{CALL}\n<tool_call>{{"name": "clock"}}</tool_call>')
        message, reason = both(server, text, tools=[WEATHER, CLOCK], tool_choice="auto")
        assert message["tool_calls"] == [["weather", '{"city": "Zürich"}'], ["clock", "{}"]]
        assert (message["content"], reason) == ("", "tool_calls")
        message, reason = both(server, text, tools=[WEATHER, CLOCK], parallel_tool_calls=False)
        assert message["tool_calls"] == [["weather", '{"city": "Zürich"}']]

    def test_none(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces(CALL), tools=[WEATHER], tool_choice="none")
        assert (message["content"], message["tool_calls"], reason) == (CALL, [], "stop")
        assert server.workers.last().template == {}

    def test_required(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces(CALL), tools=[WEATHER, CLOCK], tool_choice="required")
        assert (len(message["tool_calls"]), reason) == (1, "tool_calls")
        request = server.workers.last()
        none = {"type": "object", "properties": {}, "additionalProperties": False}
        functions: list[tuple[str, dict[str, Any]]] = [("weather", PARAMETERS), ("clock", none)]
        assert request.params.grammar == tool_calls("qwen", functions, parallel=True, thinks=True)
        assert request.grammar_name == "tools"

    def test_named(self, server: ApiServer) -> None:
        chosen = {"type": "function", "function": {"name": "weather"}}
        message, reason = both(server, in_pieces(CALL), tools=[WEATHER, CLOCK], tool_choice=chosen)
        assert (message["tool_calls"], reason) == ([["weather", '{"city": "Zürich"}']], "stop")
        grammar = tool_calls("qwen", [("weather", PARAMETERS)], parallel=False, thinks=True)
        assert server.workers.last().params.grammar == grammar

    @pytest.mark.parametrize(
        "block", ["{'name': 1}", '{"name": "nobody", "arguments": {}}', '{"name": "weather"', ""]
    )
    def test_a_botched_call_is_content(self, server: ApiServer, block: str) -> None:
        text = f"<tool_call>\n{block}</tool_call>"
        message, reason = both(server, in_pieces(text), tools=[WEATHER])
        assert (message["content"], message["tool_calls"], reason) == (text, [], "stop")

    def test_a_call_that_the_limit_cuts_off(self, server: ApiServer) -> None:
        text = CALL[: CALL.index("rich")]
        message, reason = whole(ask(server, in_pieces(text) + "|<length>", tools=[WEATHER]))
        assert (message["content"], message["tool_calls"], reason) == (text, [], "length")
        message, reason = gathered(stream(server, in_pieces(text) + "|<length>", tools=[WEATHER]))
        assert (message["tool_calls"], reason) == ([["weather", '{"city": "Zü']], "length")

    def test_the_answers_of_tools_go_back(self, server: ApiServer) -> None:
        """A conversation as the client library has it: its own message, then what the tool said."""
        messages: list[Any] = [{"role": "user", "content": CALL}]
        tools: list[Any] = [WEATHER]
        create = server.openai.chat.completions.create
        answer = create(model=MODEL, messages=messages, tools=tools).choices[0].message
        assert answer.tool_calls is not None
        messages += [answer, {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "dry|."}]
        final = create(model=MODEL, messages=messages, tools=tools)
        assert final.choices[0].message.content == "dry."
        history = server.workers.last().messages
        assert history is not None
        assert history[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Zürich"}}
        assert history[2]["tool_call_id"] == answer.tool_calls[0].id

    def test_a_model_without_tools(self, plain: ApiServer) -> None:
        param, message = refused(plain, tools=[WEATHER])
        assert param == "tools" and "chat template" in message
        assert plain.chat("a", tools=[WEATHER], tool_choice="none").status_code == 200

    def test_llama(self) -> None:
        with api_server(dialect=Dialect(tools="llama3")) as server:
            text = in_pieces('{"name": "weather", "parameters": {"city": "Bern"}}')
            message, reason = both(server, text, tools=[WEATHER])
            assert (message["tool_calls"], reason) == ([["weather", '{"city": "Bern"}']], "tool_calls")


class TestReasoning:
    def test_is_apart_from_the_answer(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces("<think>\nHm, so.\n</think>\n\nYes."))
        assert (message["reasoning_content"], message["content"], reason) == ("Hm, so.", "Yes.", "stop")
        dumped = ask(server, "Yes.").choices[0].message.model_dump(exclude_unset=True)
        assert dumped == {"role": "assistant", "content": "Yes.", "refusal": None}

    def test_a_thought_that_the_limit_cuts_off(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces("<think>\nHm, so") + "|<length>")
        assert (message["reasoning_content"], message["content"], reason) == ("Hm, so", "", "length")

    def test_then_a_call(self, server: ApiServer) -> None:
        message, reason = both(server, in_pieces(f"<think>{CALL}?</think>\n{CALL}"), tools=[WEATHER])
        assert (message["reasoning_content"], message["content"]) == (f"{CALL}?", "")
        assert (len(message["tool_calls"]), reason) == (1, "tool_calls")

    def test_switched_off(self, server: ApiServer) -> None:
        message, _ = both(server, "<think>a</think>", chat_template_kwargs={"enable_thinking": False})
        assert (message["reasoning_content"], message["content"]) == ("", "<think>a</think>")
        assert server.workers.last().template == {"enable_thinking": False}

    def test_a_model_that_does_not_think(self, plain: ApiServer) -> None:
        message, _ = both(plain, "<think>a</think>")
        assert message["content"] == "<think>a</think>"

    def test_effort_is_a_variable_of_the_template(self, server: ApiServer) -> None:
        ask(server, "a", reasoning_effort="low", chat_template_kwargs={"colour": {"a": [1]}})
        assert server.workers.last().template == {"colour": {"a": [1]}, "reasoning_effort": "low"}


def test_a_stream_is_whole_json_lines(server: ApiServer) -> None:
    response = server.chat("a", stream=True)
    for line in response.text.split("\n\n")[:-2]:
        json.loads(line.removeprefix("data: "))
