"""The tokenizer and the chat template give what `transformers` gives, which is what the models were trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minisgl.tokenizer.chat_template import CannotRender, ChatTemplate
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.errors import UserError

Chat = list[dict[str, Any]]

TEXTS = [
    "",
    " ",
    "The capital of France is Paris.",
    "  two  spaces\n\n\ttab\r\n",
    "1234567890 and 3.14159",
    "naïve café — “quotes” …",
    "你好，世界！こんにちは 안녕하세요",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "e\u0301 \u00e9 \ufffd \u0000 \u200b",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "def f(x):\n    return x ** 2  # comment\n",
]
CHATS: list[Chat] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Ünïcödé <b>&amp;</b> '\"  "}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2", "tool_calls": None},
        {"role": "user", "content": "and 2+2?", "name": None},
    ],
]
TOOL_CHAT: Chat = [
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich <1>"}}}],
    },
    {"role": "tool", "content": "sunny"},
]


@pytest.fixture(scope="session")
def transformers_tokenizers(smol_path: str, qwen_path: str) -> dict[str, Any]:
    from transformers import AutoTokenizer  # noqa: PLC0415 (seconds that only these tests need)

    return {path: AutoTokenizer.from_pretrained(path) for path in (smol_path, qwen_path)}


@pytest.fixture(params=["smol", "qwen"])
def both(request: pytest.FixtureRequest, transformers_tokenizers: dict[str, Any]) -> tuple[TextTokenizer, Any]:
    path: str = request.getfixturevalue(f"{request.param}_path")
    return request.getfixturevalue(request.param), transformers_tokenizers[path]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_like_transformers(both: tuple[TextTokenizer, Any], text: str) -> None:
    ours, theirs = both
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(text=st.text())
def test_any_text_encodes_like_transformers(both: tuple[TextTokenizer, Any], text: str) -> None:
    ours, theirs = both
    assert ours.encode(text, add_special_tokens=True) == theirs.encode(text)


@pytest.mark.parametrize("chat", CHATS)
def test_chats_like_transformers(both: tuple[TextTokenizer, Any], chat: Chat) -> None:
    ours, theirs = both
    text = ours.render_chat(chat)
    assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == ids


def test_tool_calls_like_transformers(
    qwen: TextTokenizer, qwen_path: str, transformers_tokenizers: dict[str, Any]
) -> None:
    theirs = transformers_tokenizers[qwen_path]
    expected = theirs.apply_chat_template(TOOL_CHAT, tokenize=False, add_generation_prompt=True)
    assert qwen.render_chat(TOOL_CHAT) == expected
    assert '{"city": "Zürich <1>"}' in expected


def test_each_digit_of_the_small_model_is_a_token(smol: TextTokenizer) -> None:
    ids = smol.encode("in 2024", add_special_tokens=False)
    assert [smol.decode([token]) for token in ids] == ["in", " ", "2", "0", "2", "4"]


def test_special_tokens_around_a_prompt(llama: TextTokenizer) -> None:
    bare = llama.encode("the", add_special_tokens=False)
    assert llama.encode("the", add_special_tokens=True) == [1, *bare]


def test_saved_limits_of_training_do_not_cut_prompts(llama_backend: Tokenizer) -> None:
    limited = Tokenizer.from_str(llama_backend.to_str())
    limited.enable_truncation(max_length=4)
    limited.enable_padding(length=4)
    assert TextTokenizer(limited, None).encode("the the the the the the", add_special_tokens=False) == [
        *llama_backend.encode("the the the the the the", add_special_tokens=False).ids
    ]


def test_without_tokenizer_json_transformers_converts(smol: TextTokenizer, smol_path: str, tmp_path: Path) -> None:
    model = json.loads((Path(smol_path) / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "chat_template": "{{ messages[0].content }}"})
    )
    old = TextTokenizer.load(str(tmp_path))
    text = "An older format, read all the same."
    assert old.encode(text, add_special_tokens=False) == smol.encode(text, add_special_tokens=False)
    assert old.render_chat([{"role": "user", "content": "x"}]) == "x"


def test_directory_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        TextTokenizer.load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")]
)
def test_broken_files_are_refused_by_name(smol_path: str, tmp_path: Path, name: str, content: str) -> None:
    shutil.copy(Path(smol_path) / "tokenizer.json", tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        TextTokenizer.load(str(tmp_path))


# The template's dialect


def render(source: str, messages: Chat | None = None, **special_tokens: str) -> str:
    return ChatTemplate(source, special_tokens).render(messages or [{"role": "user", "content": "hi"}])


def test_blocks_leave_no_blank_lines() -> None:
    assert (
        render("{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}") == "hi\n"
    )


def test_loop_controls() -> None:
    body = "{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}"
    assert render("{% for i in range(9) %}" + body + "{% endfor %}") == "02"


def test_tojson_is_for_models_and_not_for_browsers() -> None:
    assert render("{{ messages | tojson }}", [{"c": "<é>'&"}]) == '[{"c": "<é>\'&"}]'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_generation_blocks_are_transparent() -> None:
    assert render("[{% generation %}{{ messages[0].content }}{% endgeneration %}]") == "[hi]"


def test_special_tokens_date_and_prompt_flag() -> None:
    source = "{{ bos_token }}{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}{{ tools is none }}"
    assert render(source, bos_token="<s>") == "<s>4TrueTrue"


def test_the_templates_own_refusal_reaches_the_client_as_it_is() -> None:
    with pytest.raises(CannotRender, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' + messages[0].number }}",
        "{{ missing.attribute }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_failing_templates_are_an_error_of_one_request(source: str) -> None:
    with pytest.raises(CannotRender, match="chat template fails on these messages"):
        render(source, [{"role": "user", "number": 1}])


def test_invalid_template_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="line 2"):
        ChatTemplate("fine\n{% if %}", {})


def with_template(path: str, directory: Path, **config: Any) -> TextTokenizer:
    shutil.copy(Path(path) / "tokenizer.json", directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return TextTokenizer.load(str(directory))


def test_special_tokens_as_objects_and_named_templates(smol_path: str, tmp_path: Path) -> None:
    tokenizer = with_template(
        smol_path,
        tmp_path,
        bos_token={"content": "<s>", "lstrip": False},
        eos_token="</s>",
        pad_token=None,
        add_bos_token=True,
        chat_template=[
            {"name": "tool_use", "template": "wrong"},
            {
                "name": "default",
                "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}",
            },
        ],
    )
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "<s>hi</s>"


def test_template_file_wins_over_the_config(smol_path: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    assert with_template(smol_path, tmp_path, chat_template="config").render_chat([{}]) == "file"


def test_model_without_a_template_says_so(smol_path: str, tmp_path: Path) -> None:
    tokenizer = with_template(smol_path, tmp_path)
    with pytest.raises(CannotRender, match="no chat template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
