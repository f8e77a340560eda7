"""The bodies that clients send. Whatever is not declared here, or not served yet, is refused by its name."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from minisgl.core.sampling import SamplingParams
from minisgl.server.errors import invalid
from minisgl.server.frontend import Prompt

INT32_MAX = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing float32 logits by it would overflow."""
COMPLETION_MAX_TOKENS = 16

FAIL_FAST = Field(fail_fast=True)
"""A list stops at its first wrong element, so that a million wrong ones cost no more than one."""

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


def _listed_stop(value: Any) -> Any:
    if value is not None and not isinstance(value, (str, list)):
        raise PydanticCustomError("form", "must be a string or a list of strings")
    return [value] if isinstance(value, str) else value


class Strict(BaseModel):
    """No coercion, no unknown fields. The fields of `NEUTRAL` may come with null, or a value that asks nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, data: Any) -> Any:
        """Here and not by `extra`, so that the first wrong name ends it: a body may have a million."""
        if not isinstance(data, dict):
            raise PydanticCustomError("object", "must be an object")
        known = {}
        for name, value in data.items():
            if name in cls.model_fields:
                known[name] = value
            elif name not in cls.NEUTRAL:
                raise PydanticCustomError("unknown_parameter", "is not a known parameter", {"name": name})
            elif value is not None and value not in cls.NEUTRAL[name]:
                allowed = " or ".join(json.dumps(neutral) for neutral in cls.NEUTRAL[name])
                but = f"; only {allowed} is accepted" if allowed else ""
                raise PydanticCustomError("unsupported_parameter", f"is not supported{but}", {"name": name})
        return known


class StreamOptions(Strict):
    NEUTRAL = {"include_obfuscation": (False,)}
    include_usage: bool | None = None


class TextPart(Strict):
    NEUTRAL = dict.fromkeys(("image_url", "input_audio", "audio_url", "video_url", "file", "refusal"), ())
    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a chat. `developer` is the newer name of `system`."""

    # The client library's own messages, given back as history, carry these.
    NEUTRAL = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "tool_calls": ([],),
        "reasoning_content": ("",),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | Annotated[list[TextPart], FAIL_FAST], Field(union_mode="left_to_right")]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates know it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return message if self.name is None else message | {"name": self.name}


class GenerateRequest(Strict):
    """What both endpoints understand. A null is as good as leaving the field out."""

    NEUTRAL = {
        "n": (1,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "logit_bias": ({},),
    }
    model: str
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = Field(
        default=None, description="-1 or 0: every token."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[
        Annotated[list[StopString], Field(max_length=MAX_STOPS), FAIL_FAST] | None, BeforeValidator(_listed_stop)
    ] = Field(default=None, description="A string, or several.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS), FAIL_FAST] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Shown in the log.")

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only allowed with stream: true", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_tokens: int | None, defaults: SamplingParams) -> SamplingParams:
        temperature = defaults.temperature if self.temperature is None else self.temperature
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=defaults.top_k if self.top_k is None else max(self.top_k, 0),
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            seed=None if self.seed is None else self.seed & (2**63 - 1),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
        )


class ChatRequest(GenerateRequest):
    """``POST /v1/chat/completions``."""

    NEUTRAL = GenerateRequest.NEUTRAL | {
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "chat_template_kwargs": ({},),
        "metadata": ({},),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }
    messages: Annotated[list[Message], Field(min_length=1), FAIL_FAST]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise invalid(
                "max_tokens and max_completion_tokens mean the same; send one of them",
                param="max_completion_tokens",
            )
        return self

    def prompts(self) -> list[Prompt]:
        limit_name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return [Prompt(messages=[message.for_template() for message in self.messages], limit_name=limit_name)]

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` are the model's. Without a limit, the answer may take the rest of the context."""
        return self.sampling(self.max_completion_tokens or self.max_tokens, defaults)


def _listed_prompt(value: Any) -> Any:
    """The four forms of a prompt, as a list of prompts: each a string or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        forms = "must be a string, a list of strings, a list of token ids, or a list of such lists, and not empty"
        raise PydanticCustomError("form", forms)
    return [value] if isinstance(value[0], int) else value


TokenIds = Annotated[list[TokenId], Field(min_length=1), FAIL_FAST]


class CompletionRequest(GenerateRequest):
    """``POST /v1/completions``."""

    NEUTRAL = GenerateRequest.NEUTRAL | {
        "logprobs": (),
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
        "response_format": ({"type": "text"},),
    }
    prompt: Annotated[
        Annotated[list[str], FAIL_FAST] | Annotated[list[TokenIds], FAIL_FAST],
        Field(union_mode="left_to_right"),
        BeforeValidator(_listed_prompt),
    ] = Field(description="A string, a list of strings, a list of token ids, or a list of such lists.")

    def prompts(self) -> list[Prompt]:
        return [
            Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=prompt) for prompt in self.prompt
        ]

    def params(self, defaults: SamplingParams) -> SamplingParams:
        max_tokens = COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self.sampling(max_tokens, defaults)
