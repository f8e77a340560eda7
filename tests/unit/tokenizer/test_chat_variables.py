"""What a chat template knows besides messages, in the ways that templates write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl.tokenizer.chat_template import CannotRender, ChatTemplate
from minisgl.tokenizer.template_source import read_template

# As the templates of Llama 3.1 begin: a variable that is looked up, and then set.
LLAMA = """\
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- for tool in tools or [] %}{{ tool.function.name }},{%- endfor %}
{{- messages[0].content }}{% if colour is defined %}{{ colour.name }}{% endif %}"""
MESSAGES = [{"role": "user", "content": "hi"}]


def test_variables_reach_the_template() -> None:
    template = ChatTemplate(LLAMA, {})
    tools = [{"type": "function", "function": {"name": "clock"}}]
    assert template.render(MESSAGES) == "hi"
    assert template.render(MESSAGES, {"tools": tools}) == "clock,hi"
    assert template.render(MESSAGES, {"custom_tools": tools, "colour": {"name": "red"}}) == "clock,hired"


def test_an_unknown_variable_is_refused_by_name() -> None:
    with pytest.raises(CannotRender, match="knows no enable_thinking") as caught:
        ChatTemplate(LLAMA, {}).render(MESSAGES, {"enable_thinking": False})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("name", ["self", "messages", "environment", "__class__", "a b"])
def test_no_name_breaks_the_rendering(name: str) -> None:
    with pytest.raises(CannotRender):
        ChatTemplate("{{ 1 }}", {}).render(MESSAGES, {name: 1})


def test_a_template_that_fails_on_a_variable_says_so() -> None:
    with pytest.raises(CannotRender, match="chat template fails"):
        ChatTemplate("{{ colour + 1 }}", {}).render(MESSAGES, {"colour": "red"})


def test_a_directory_without_a_template(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "x"}]}')
    assert read_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "y"}')
    assert read_template(tmp_path) == "y"
