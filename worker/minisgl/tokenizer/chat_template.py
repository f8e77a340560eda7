"""A model's chat template: messages to the text that the model was trained to continue.

The template is Jinja in the sandbox and dialect that Hugging Face defined for it, without the import of
`transformers`, which takes seconds.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minisgl.utils.errors import UserError


class CannotRender(Exception):
    """The template refuses these messages, or fails on them. Its text is for the client."""

    def __init__(self, message: str, *, param: str = "messages") -> None:
        super().__init__(message)
        self.param = param
        """The parameter that is to blame."""


class _Refusal(jinja2.TemplateError):
    """The template itself called ``raise_exception``."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training. Here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 (declared so by the base class)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A compiled template. Raises `UserError` when `source` is not a valid one.

    `special_tokens` are names such as ``bos_token`` that the template may use, with their text.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            self._variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the model's chat template, line {error.lineno}: {error.message}") from None
        self._special_tokens = special_tokens

    def render(self, messages: list[dict[str, Any]], variables: dict[str, Any] | None = None) -> str:
        """The chat as text that ends where the assistant's answer begins.

        `variables` are further ones of the template, such as `tools`, or other values of these. Raises
        `CannotRender`, also for a variable that the template does not know: it would have no effect.
        """
        for name in variables or ():
            if name not in self._variables and name != "add_generation_prompt":
                param = name if name in ("tools", "reasoning_effort") else "chat_template_kwargs"
                raise CannotRender(f"{param}: this model's chat template knows no {name[:80]}", param=param)
        # A key without a value is left out: templates test for the presence of keys, and fail on None.
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            usual = {"tools": None, "documents": None, "add_generation_prompt": True}
            context = self._special_tokens | usual | (variables or {})
            return self._template.render(context | {"messages": present})
        except _Refusal as refusal:
            raise CannotRender(str(refusal)) from None
        except Exception as error:  # a template is a program: it can fail with whatever the messages provoke
            raise CannotRender(f"the model's chat template fails on these messages: {error}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, without HTML escapes: the reader is a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
