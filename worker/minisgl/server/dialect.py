"""What a model writes besides plain text, as its chat template shows it."""

from __future__ import annotations

import msgspec

from minisgl.grammar import ToolForm


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How the answers of a model are read."""

    tools: ToolForm | None = None
    """The form of its tool calls; None: it makes none."""
    thinks: bool = False
    """Its answers may begin with a thought, ``<think> ... </think>``."""


def dialect(template: str | None, *, tool_parser: str = "auto", reasoning_parser: str = "auto") -> Dialect:
    """The dialect of a model with this chat template, where the options leave it open."""
    form = _tool_form(template or "") if tool_parser == "auto" else tool_parser
    thinks = "</think>" in (template or "") if reasoning_parser == "auto" else reasoning_parser == "think"
    return msgspec.convert({"tools": None if form == "none" else form, "thinks": thinks}, Dialect)


def _tool_form(template: str) -> ToolForm | None:
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        return None if "<function=" in template else "qwen"  # Qwen3-Coder writes XML between the same tags
    return "llama3" if "<|start_header_id|>" in template and '"parameters"' in template else None
