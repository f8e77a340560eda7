"""``POST /tokenize`` and ``POST /detokenize``: what a tokenizer process does of a request, and nothing more."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

import msgspec
from fastapi import Response
from pydantic import Field, model_validator

from minisgl.message import Text, TextToTokens, Tokens, TokensToText
from minisgl.server.errors import invalid
from minisgl.server.frontend import Frontend
from minisgl.server.openai_messages import Message
from minisgl.server.openai_tools import Tools
from minisgl.server.strict import FAIL_FAST, JsonObject, Strict, TokenId


class TokenizeBody(Strict):
    """A text or a chat, as a generating endpoint would read it."""

    NEUTRAL: ClassVar = {"continue_final_message": (False,), "chat_template": (), "mm_processor_kwargs": ({},)}
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1), FAIL_FAST] | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="Those that the model wants around a text; a chat template writes its own."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="End the chat with the opening of the assistant's answer, as by default."
    )
    tools: Tools | None = None
    chat_template_kwargs: JsonObject | None = None
    return_token_strs: bool | None = Field(default=None, description="Also the names of the tokens.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("send one of prompt and messages", param="prompt")
        if self.messages is None:
            for name in ("add_generation_prompt", "tools", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    raise invalid(f"{name} is only allowed with messages", param=name)
        return self

    def question(self, uid: int, max_seq_len: int) -> TextToTokens:
        """What the tokenizer is asked."""
        chat = self.messages is not None
        template = (self.chat_template_kwargs or {}) | {
            "add_generation_prompt": self.add_generation_prompt is not False
        }
        return TextToTokens(
            uid=uid,
            text=self.prompt,
            messages=None if self.messages is None else [message.for_template() for message in self.messages],
            template=template | ({"tools": [tool.for_template() for tool in self.tools]} if self.tools else {}),
            add_special_tokens=not chat if self.add_special_tokens is None else self.add_special_tokens,
            names=bool(self.return_token_strs),
            max_seq_len=max_seq_len,
        )


class DetokenizeBody(Strict):
    model: str | None = None
    tokens: Annotated[list[TokenId], FAIL_FAST]


async def tokenize(body: TokenizeBody, frontend: Frontend) -> Response:
    """Token ids, their number, and the most that the worker reads."""
    answer = await frontend.ask(lambda uid, limits: body.question(uid, limits.max_seq_len))
    assert isinstance(answer, Tokens) and frontend.readiness.limits is not None
    return _json(
        count=len(answer.token_ids),
        max_model_len=frontend.readiness.limits.max_seq_len,
        tokens=answer.token_ids,
        token_strs=answer.names,
    )


async def detokenize(body: DetokenizeBody, frontend: Frontend) -> Response:
    """The text of token ids, special tokens among them."""
    answer = await frontend.ask(
        lambda uid, limits: TokensToText(uid=uid, token_ids=body.tokens, vocab_size=limits.vocab_size)
    )
    assert isinstance(answer, Text)
    return _json(prompt=answer.text)


def _json(**fields: Any) -> Response:
    """Not by FastAPI's encoder, which looks at each of a million ids."""
    return Response(msgspec.json.encode(fields), media_type="application/json")
