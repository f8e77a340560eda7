"""The turns of a chat as clients send them, and as chat templates know them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError, from_json

from minisgl.server.neutral import Neutral
from minisgl.server.strict import FAIL_FAST, JsonObject, Strict, broken

MAX_CALLS = 128


def _read_arguments(value: Any) -> Any:
    """The object that a call's arguments are the JSON of: templates write it out in their own form."""
    if not isinstance(value, str):
        raise PydanticCustomError("form", "must be a string")
    try:
        return from_json(value or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise broken(f"is not valid JSON: {error}") from None


class TextPart(Strict):
    NEUTRAL: ClassVar[Neutral] = dict.fromkeys(
        ("image_url", "input_audio", "audio_url", "video_url", "file", "refusal"), ()
    )
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Annotated[JsonObject, BeforeValidator(_read_arguments, json_schema_input_type=str)]


class ToolCall(Strict):
    """A call that an earlier answer made."""

    NEUTRAL: ClassVar[Neutral] = {"custom": ()}
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(default=None, exclude=True, description="As the pieces of a stream have it.")


class Message(Strict):
    """One turn of a chat. `developer` is the newer name of `system`."""

    # The client library's own messages, given back as history, carry these.
    NEUTRAL: ClassVar[Neutral] = {"refusal": (), "annotations": ([],), "audio": (), "function_call": ()}
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | Annotated[list[TextPart], FAIL_FAST] | None, Field(union_mode="left_to_right")] = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS), FAIL_FAST] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        for name, role in (
            ("tool_calls", "assistant"),
            ("reasoning_content", "assistant"),
            ("tool_call_id", "tool"),
        ):
            if getattr(self, name) and self.role != role:
                raise broken(f'only a message with the role "{role}" can have it', name)
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("missing", "", {"name": "tool_call_id"})
        if self.content is None and not (self.tool_calls or self.reasoning_content):
            if "content" not in self.model_fields_set:
                raise PydanticCustomError("missing", "", {"name": "content"})
            raise broken("must be a string or a list of text parts, not null", "content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates know it: a call's arguments are an object, and content is always a string."""
        content = self.content or ""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content if isinstance(content, str) else "".join(part.text for part in content),
        }
        for name in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return message
