"""The tools that a chat offers, and which of them the answer must call."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from minisgl.server.neutral import Neutral
from minisgl.server.strict import FAIL_FAST, JsonObject, Strict, broken

MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise broken('must be the schema of an object, {"type": "object", ...}')
    return schema


class Function(Strict):
    name: ToolName
    description: str | None = None
    parameters: Annotated[JsonObject, AfterValidator(_of_an_object)] | None = None
    strict: bool | None = Field(
        default=None,
        description="A call that is forced always fits the parameters; one that is not is not forced to.",
    )

    @property
    def schema_(self) -> dict[str, Any]:
        """Of the arguments; without parameters there are none."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object"} | self.parameters


class Tool(Strict):
    NEUTRAL: ClassVar[Neutral] = {"custom": ()}
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


def _named_once(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise broken(f'two tools have the name "{name}"')
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), FAIL_FAST, AfterValidator(_named_once)]


class ChosenFunction(Strict):
    name: ToolName


class ChosenTool(Strict):
    NEUTRAL: ClassVar[Neutral] = {"allowed_tools": (), "custom": ()}
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Annotated[Literal["none", "auto", "required"] | ChosenTool, Field(union_mode="left_to_right")]
