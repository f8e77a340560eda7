"""What becomes of a request before the scheduler hears of it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from minisgl.core.sampling import SamplingParams
from minisgl.grammar import behind_prompt, json_object
from minisgl.message import NewRequest, Rejected, TokenizeRequest
from minisgl.tokenizer.chat_template import ChatTemplate
from minisgl.tokenizer.prepare import prepare
from minisgl.tokenizer.text import TextTokenizer


def ask(
    tokenizer: TextTokenizer, *, limit: int = 64, vocab_size: int = 49152, **fields: Any
) -> NewRequest | Rejected:
    params = SamplingParams(max_tokens=fields.pop("max_tokens", None), seed=fields.pop("seed", None))
    return prepare(
        tokenizer, TokenizeRequest(uid=3, params=params, max_seq_len=limit, vocab_size=vocab_size, **fields)
    )


def accepted(answer: NewRequest | Rejected) -> NewRequest:
    assert isinstance(answer, NewRequest), answer
    assert answer.uid == 3
    return answer


def rejected(answer: NewRequest | Rejected) -> Rejected:
    assert isinstance(answer, Rejected), answer
    assert answer.uid == 3
    return answer


def test_text_becomes_tokens(smol: TextTokenizer) -> None:
    request = accepted(ask(smol, text="Hello world", max_tokens=5, seed=9))
    assert request.token_ids == smol.encode("Hello world", add_special_tokens=True)
    assert (request.params.max_tokens, request.params.seed) == (5, 9)


def test_a_prompt_gets_the_special_tokens_of_its_model(llama: TextTokenizer) -> None:
    assert accepted(ask(llama, text="the")).token_ids[0] == 1


def test_a_chat_gets_those_of_its_template_only(smol: TextTokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    request = accepted(ask(smol, messages=messages))
    assert request.token_ids == smol.encode(smol.render_chat(messages), add_special_tokens=False)
    assert request.token_ids.count(1) == 3  # <|im_start|> of system, user and assistant


def test_token_ids_pass_as_they_are(smol: TextTokenizer) -> None:
    assert accepted(ask(smol, token_ids=[5, 0, 49151])).token_ids == [5, 0, 49151]


def test_open_max_tokens_is_what_the_context_leaves(smol: TextTokenizer) -> None:
    assert accepted(ask(smol, token_ids=[5] * 60, limit=64)).params.max_tokens == 4


def test_open_seeds_differ(smol: TextTokenizer) -> None:
    seeds = [accepted(ask(smol, text="x")).params.seed for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


def test_an_exact_fit_is_accepted(smol: TextTokenizer) -> None:
    assert accepted(ask(smol, token_ids=[5] * 60, max_tokens=4, limit=64))


def test_one_token_too_many_says_all_numbers(smol: TextTokenizer) -> None:
    answer = rejected(ask(smol, token_ids=[5] * 60, max_tokens=5, limit=64))
    assert (answer.param, answer.code) == ("max_tokens", "context_length_exceeded")
    for number in ("60", "5", "65", "64"):
        assert number in answer.message.replace(",", "").split(), answer.message


@pytest.mark.parametrize("field", ["text", "messages", "token_ids"])
def test_a_prompt_without_room_for_an_answer_says_both_numbers(smol: TextTokenizer, field: str) -> None:
    words = "a" + " a" * 63
    chat = [{"role": "user", "content": words}]
    prompts: dict[str, Any] = {"text": words, "messages": chat, "token_ids": [5] * 64}
    answer = rejected(ask(smol, **{field: prompts[field]}, limit=64))
    assert answer.code == "context_length_exceeded"
    assert answer.param == ("messages" if field == "messages" else "prompt")
    rendered = smol.encode(smol.render_chat(chat), add_special_tokens=False)
    count = len(rendered) if field == "messages" else 64
    assert f"{count} tokens" in answer.message
    assert "a context length of 64 tokens" in answer.message


@pytest.mark.parametrize("prompt", [{"text": ""}, {"token_ids": []}])
def test_an_empty_prompt_is_refused(smol: TextTokenizer, prompt: dict[str, Any]) -> None:
    answer = rejected(ask(smol, **prompt))
    assert answer.param == "prompt" and "empty" in answer.message


@pytest.mark.parametrize("wrong", [-1, 49152])
def test_ids_outside_the_vocabulary_are_named(smol: TextTokenizer, wrong: int) -> None:
    answer = rejected(ask(smol, token_ids=[1, wrong, 2]))
    assert str(wrong) in answer.message and "0 to 49151" in answer.message and answer.param == "prompt"


def test_text_whose_tokens_the_model_does_not_know_is_refused(smol: TextTokenizer) -> None:
    assert "outside the vocabulary" in rejected(ask(smol, text="Hello world", vocab_size=100)).message


def test_messages_that_the_template_cannot_render(smol: TextTokenizer, llama: TextTokenizer) -> None:
    answer = rejected(ask(smol, messages=[{"role": "user", "content": [1]}]))
    assert answer.param == "messages" and "chat template" in answer.message
    assert "no chat template" in rejected(ask(llama, messages=[{"role": "user", "content": "hi"}])).message


def test_the_other_answers_and_the_echo_reach_the_scheduler(smol: TextTokenizer) -> None:
    request = accepted(ask(smol, text="Hello world", copies=3))
    assert (request.copies, request.shown) == (3, 0)
    request = accepted(ask(smol, text="Hello world", echo=True))
    assert request.shown == len(request.token_ids) > 1
    assert accepted(ask(smol, token_ids=[5, 6, 7], echo=True)).shown == 3


USER = {"role": "user", "content": "hi <think>"}


def chatting(tokenizer: TextTokenizer, template: str) -> TextTokenizer:
    return TextTokenizer(tokenizer._backend, ChatTemplate(template, {}))


@pytest.mark.parametrize("opening", ["<think>", "<think>\n", "<think>\n\n", " <think> \n"])
def test_a_thought_that_the_template_opens_belongs_to_the_answer(
    qwen: TextTokenizer, smol: TextTokenizer, opening: str
) -> None:
    for tokenizer in (qwen, smol):  # in the vocabulary of one, the tag is a token
        template = "{{ messages[0].content }}:\n{{ '" + opening.replace("\n", "\\n") + "' }}"
        request = accepted(ask(chatting(tokenizer, template), messages=[USER], vocab_size=0))
        shown = tokenizer.decode(request.token_ids[len(request.token_ids) - request.shown :])
        assert shown.strip() == "<think>" and request.shown < 8
        assert request.shown > 1 or tokenizer is qwen


def test_a_grammar_learns_whether_the_thought_is_open(qwen: TextTokenizer) -> None:
    def grammar(template: str) -> str:
        params = SamplingParams(grammar=json_object(thinks=True))
        asked = TokenizeRequest(uid=3, params=params, max_seq_len=64, messages=[USER])
        return accepted(prepare(chatting(qwen, template), asked)).params.grammar

    assert grammar("x<think>") == behind_prompt(json_object(thinks=True), opened=True)
    assert grammar("x") == behind_prompt(json_object(thinks=True), opened=False)
    plain = json_object()
    assert behind_prompt(plain, opened=True) == behind_prompt(plain, opened=False) == plain


@pytest.mark.parametrize("end", ["", "<think>\n\n</think>\n\n", "<think>a", "<thinking>", "think>"])
def test_no_other_end_of_a_prompt_does(qwen: TextTokenizer, end: str) -> None:
    template = "{{ messages[0].content }}: {{ '" + end.replace("\n", "\\n") + "' }}"
    request = accepted(ask(chatting(qwen, template), messages=[USER], vocab_size=0))
    assert request.shown == 0


def test_thinking_that_is_switched_off_is_not_shown(qwen: TextTokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for template in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        request = accepted(ask(qwen, messages=messages, template=template, limit=512, vocab_size=0))
        assert request.shown == 0
        closed = "<think>\n\n</think>\n\n" if template.get("enable_thinking") is False else ""
        assert qwen.decode(request.token_ids).endswith("assistant\n" + closed)


def test_tools_and_variables_reach_the_template(qwen: TextTokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    messages = [{"role": "user", "content": "hi"}]
    request = accepted(ask(qwen, messages=messages, template={"tools": tools}, limit=512, vocab_size=0))
    assert '{"name": "weather", "parameters": {"type": "object"}}' in qwen.decode(request.token_ids)


@pytest.mark.parametrize(
    ("variable", "param"),
    [("tools", "tools"), ("reasoning_effort", "reasoning_effort"), ("enable_thinking", "chat_template_kwargs")],
)
def test_what_the_template_does_not_know_is_refused(smol: TextTokenizer, variable: str, param: str) -> None:
    answer = rejected(ask(smol, messages=[{"role": "user", "content": "hi"}], template={variable: "x"}))
    assert answer.param == param
    assert f"knows no {variable}" in answer.message


class Counting(TextTokenizer):
    """Counts the characters that are tokenized."""

    encoded = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.encoded += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("length", [600_000, 20_000_000])
@pytest.mark.parametrize("unit", ["word ", "测试", "😀"])
def test_only_the_beginning_of_a_hopeless_text_is_tokenized(smol_path: str, unit: str, length: int) -> None:
    tokenizer = Counting(Tokenizer.from_file(f"{smol_path}/tokenizer.json"), None)
    answer = rejected(ask(tokenizer, text=unit * (length // len(unit)), limit=8192))
    assert tokenizer.encoded < 48 * 8192
    assert answer.code == "context_length_exceeded"
    assert "8192 tokens" in answer.message


def test_a_text_of_more_characters_than_the_longest_tokens_have_is_not_tokenized(smol_path: str) -> None:
    tokenizer = Counting(Tokenizer.from_file(f"{smol_path}/tokenizer.json"), None)
    answer = rejected(ask(tokenizer, text=" " * 1_000_000, limit=8192))
    assert tokenizer.encoded == 0
    assert "1000000 characters" in answer.message and "8192 tokens" in answer.message


def test_a_long_text_of_few_tokens_is_accepted(smol: TextTokenizer) -> None:
    spaces = " " * 2000
    request = accepted(ask(smol, text=spaces, limit=64))
    assert request.token_ids == smol.encode(spaces, add_special_tokens=True)
    assert "more than" in rejected(ask(smol, text="a b" * 1000, limit=64)).message
