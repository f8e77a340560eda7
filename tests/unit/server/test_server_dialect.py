"""Which form of tool calls a model writes, and whether it thinks, is read from its chat template."""

from __future__ import annotations

import pytest

from minisgl.server.dialect import Dialect, dialect

QWEN2 = "{% if tools %}<tools></tools> within <tool_call></tool_call> XML tags{% endif %}"
QWEN3 = QWEN2 + "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}"
LLAMA = (
    "<|start_header_id|>{% if tools is not none %}Respond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.{% endif %}'
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, Dialect()),
        ("{{ messages }}", Dialect()),
        (QWEN2, Dialect(tools="qwen")),
        (QWEN3, Dialect(tools="qwen", thinks=True)),
        (LLAMA, Dialect(tools="llama3")),
        (LLAMA + "</think>", Dialect(tools="llama3", thinks=True)),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}", Dialect()),
        ("{% if tools %}<tool_call>\n<function=name>{% endif %}", Dialect()),
        ("<|start_header_id|>{{ messages }}", Dialect()),
    ],
)
def test_the_template_shows_it(template: str | None, expected: Dialect) -> None:
    assert dialect(template) == expected


def test_the_options_decide() -> None:
    assert dialect(QWEN3, tool_parser="none", reasoning_parser="none") == Dialect()
    assert dialect(QWEN3, tool_parser="llama3") == Dialect(tools="llama3", thinks=True)
    assert dialect(None, tool_parser="qwen", reasoning_parser="think") == Dialect(tools="qwen", thinks=True)
