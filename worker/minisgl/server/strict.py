"""How bodies are checked: nothing is converted, nothing is ignored, and the first wrong thing ends the reading."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from minisgl.server.neutral import Neutral

MAX_DEPTH = 64
"""Levels of the objects that clients may send as they like: schemas, and variables of the chat template."""
MAX_SIZE = 262_144
"""Characters and values of one of them."""

FAIL_FAST = Field(fail_fast=True)
"""A list stops at its first wrong element, so that a million wrong ones cost no more than one."""


def broken(rule: str, name: str | None = None) -> PydanticCustomError:
    """What was sent breaks a rule that its value alone does not show; `name`: in which field of it."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule} if name is None else {"rule": rule, "name": name})


class Strict(BaseModel):
    """No coercion, no unknown fields. The fields of `NEUTRAL` may come with null, or a value that asks nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    NEUTRAL: ClassVar[Neutral] = {}
    ALIASES: ClassVar[tuple[str, ...]] = ()
    """Fields whose names a Python class cannot have."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, data: Any) -> Any:
        """Here and not by `extra`, so that the first wrong name ends it: a body may have a million."""
        if not isinstance(data, dict):
            raise PydanticCustomError("object", "must be an object")
        known = {}
        for name, value in data.items():
            if name in cls.model_fields or name in cls.ALIASES:
                known[name] = value
            elif name not in cls.NEUTRAL:
                raise PydanticCustomError("unknown_parameter", "is not a known parameter", {"name": name})
            elif value is not None and value not in cls.NEUTRAL[name]:
                allowed = " or ".join(json.dumps(neutral) for neutral in cls.NEUTRAL[name])
                but = f"; only {allowed} is accepted" if allowed else ""
                raise PydanticCustomError("unsupported_parameter", f"is not supported{but}", {"name": name})
        return known


def _bounded(value: Any) -> Any:
    """An object that is neither so deep nor so large that reading it is a danger; raises else."""
    if not isinstance(value, dict):
        raise PydanticCustomError("object", "must be an object")
    level: list[Any] = [value]
    size = 0
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for outer in level:
            for inner in outer.values() if isinstance(outer, dict) else outer:
                size += 1 + (len(inner) if isinstance(inner, str) else 0)
                if isinstance(inner, (dict, list)):
                    deeper.append(inner)
                elif isinstance(inner, int) and not -(2**63) <= inner < 2**63:
                    raise broken("whole numbers must have at most 64 bits")
            size += sum(map(len, outer)) if isinstance(outer, dict) else 0
            if size > MAX_SIZE:
                raise broken(f"must have at most {MAX_SIZE} characters")
        if not deeper:
            return value
        level = deeper
    raise broken(f"must be at most {MAX_DEPTH} levels deep")


JsonObject = Annotated[dict[str, Any], BeforeValidator(_bounded)]
"""Any object, within `MAX_DEPTH` and `MAX_SIZE`."""


def _listed_stop(value: Any) -> Any:
    if value is not None and not isinstance(value, (str, list)):
        raise PydanticCustomError("form", "must be a string or a list of strings")
    return [value] if isinstance(value, str) else value


INT32_MAX = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_BIASED = 300

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds = Annotated[list[TokenId], Field(min_length=1), FAIL_FAST]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_StopList = Annotated[list[StopString], Field(max_length=MAX_STOPS), FAIL_FAST]
StopStrings = Annotated[
    _StopList | None, BeforeValidator(_listed_stop, json_schema_input_type=StopString | _StopList | None)
]


def _checked_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("object", "must be an object")
    if len(value) > MAX_BIASED:
        raise broken(f"must have at most {MAX_BIASED} entries, not {len(value)}")
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and str(int(token[:10])) == token):
            raise broken(f"{json.dumps(token[:40])} is not a token id: keys are numbers, as strings")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise broken(f"the value of token {token} must be a number from -100 to 100")
    return value


LogitBias = Annotated[dict[str, float], BeforeValidator(_checked_bias)]
"""Token ids, as strings, and what is added to their logits."""


def _listed_prompt(value: Any) -> Any:
    """The four forms of a prompt, as a list of prompts: each a string or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        forms = "must be a string, a list of strings, a list of token ids, or a list of such lists, and not empty"
        raise PydanticCustomError("form", forms)
    return [value] if isinstance(value[0], int) else value


_Texts = Annotated[list[str], Field(min_length=1), FAIL_FAST]
_ManyIds = Annotated[list[TokenIds], Field(min_length=1), FAIL_FAST]
PromptForms = Annotated[
    _Texts | _ManyIds,
    Field(union_mode="left_to_right"),
    BeforeValidator(_listed_prompt, json_schema_input_type=str | _Texts | TokenIds | _ManyIds),
]
"""A string, a list of strings, a list of token ids, or a list of such lists."""
