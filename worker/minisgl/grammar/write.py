"""Grammars for the answers that people ask for, in llguidance's dialect of Lark.

`minisgl.core.sampling.SamplingParams.grammar` holds such a text; its rule `start` is the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

ToolForm = Literal["qwen", "llama3"]

SPACE = r"\x20|\n\x20{0,24}"
"""White space where JSON allows some: none, a space, or a new line with its indentation. More would let a small
model write blanks for ever."""

_MAY_THINK, _MUST_THINK = "(thought gap?)?", "thought gap?"
_BEGINNING = r"((<think>|[^<{])(.|\n)*)?"
_THOUGHT = rf"""
thought[lazy]: /{_BEGINNING}<\/think>/
gap: /\n{{1,2}}/
"""
"""A thought to its end, and what stands behind it. The prompt may have opened it already. It does not begin as an
answer does, so that an answer without a thought has to follow the grammar from its first character."""


def json_object(*, thinks: bool = False) -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, thinks=thinks)


def json_schema(schema: Mapping[str, Any], *, thinks: bool = False) -> str:
    """JSON that fits a JSON Schema (2020-12), its properties in the order of the schema.

    `thinks`: a thought may come first, ``<think> ... </think>``, or its rest if the prompt has opened it.
    """
    return _grammar(_json(schema), "", thinks=thinks)


def tool_calls(
    form: ToolForm,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    parallel: bool,
    thinks: bool,
    otherwise: Mapping[str, Any] | None = None,
) -> str:
    """A call of one of `tools`, each a name and the schema of its arguments; several calls if `parallel`.

    qwen: ``<tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>``, a line break between.
    llama3: ``{"name": ..., "parameters": ...}``, ``"; "`` between calls.
    `otherwise`, for qwen: instead of a call, JSON that fits this schema will do. (In llama3, both begin alike, and
    a lexer that takes the longest match cannot tell them apart.)
    """
    if not tools:
        raise ValueError("a call needs at least one tool")
    if otherwise is not None and form == "llama3":
        raise ValueError("in this form, a call is JSON too")
    opening, arguments, closing, between = {
        "qwen": ("<tool_call>\n", "arguments", "\n</tool_call>", "\n"),
        "llama3": ("", "parameters", "", "; "),
    }[form]
    rules = ["call: " + " | ".join(f"call{index}" for index in range(len(tools)))]
    for index, (name, schema) in enumerate(tools):
        # The schema is a document of its own: its references start at its own root.
        head = f'{opening}{{"name": {json.dumps(name)}, "{arguments}": '
        body = _json({**schema, "type": "object"} if "type" not in schema else schema)
        rules.append(f"call{index}: {_literal(head)} {body} {_literal('}' + closing)}")
    answer = f"call ({_literal(between)} call)*" if parallel else "call"
    if otherwise is not None:
        rules.append(f"other: {_json(otherwise)}")
        answer = f"({answer} | other)"
    return _grammar(answer, "\n".join(rules), thinks=thinks)


def behind_prompt(grammar: str, *, opened: bool) -> str:
    """The grammar, once it is known whether the prompt has opened the thought.

    If it has, the answer goes on with it; if not, what does not begin with the tag is no thought.
    """
    if not opened:
        return grammar.replace(_THOUGHT, _THOUGHT.replace(_BEGINNING, "<think>(.|\\n)*"))
    return grammar.replace(f"start: {_MAY_THINK}", f"start: {_MUST_THINK}", 1).replace(
        _THOUGHT, _THOUGHT.replace(_BEGINNING, "(.|\\n)*")
    )


def _grammar(answer: str, rules: str, *, thinks: bool) -> str:
    start = f"start: {_MAY_THINK} {answer}" if thinks else f"start: {answer}"
    return f"{start}\n{rules}{_THOUGHT if thinks else ''}"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": SPACE}}, ensure_ascii=False)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
