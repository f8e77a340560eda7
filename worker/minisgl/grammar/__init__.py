"""Answers that follow a grammar: the grammars, whether one can be used, and which token may come next.

What is imported from here is light; llguidance is loaded later, at the latest with the first grammar.
"""

from minisgl.grammar.write import ToolForm, behind_prompt, json_object, json_schema, tool_calls

__all__ = ["ToolForm", "behind_prompt", "json_object", "json_schema", "tool_calls"]
