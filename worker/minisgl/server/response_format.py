"""The form that an answer must have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from minisgl.grammar import json_schema
from minisgl.server.strict import JsonObject, Strict, broken


class NamedSchema(Strict):
    """The name and the description are for readers; the answer fits the schema whether or not it is strict."""

    ALIASES: ClassVar[tuple[str, ...]] = ("schema",)
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Any text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "", {"name": "json_schema"})
        if self.type != "json_schema" and self.json_schema is not None:
            raise broken('is only allowed with type "json_schema"', "json_schema")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema that the answer must fit; None: any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None

    def grammar(self, *, thinks: bool) -> str:
        """For `SamplingParams.grammar`; `thinks`: a thought may come first."""
        return "" if self.wanted is None else json_schema(self.wanted, thinks=thinks)
