"""From the bytes of a request body to a validated request, or to an error that names the field."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect, Request

from minisgl.server.errors import ApiError, body_too_large, invalid

T = TypeVar("T", bound=BaseModel)

_FIELD = re.compile(r"[a-z_][a-z0-9_]*")
_SUBJECT = re.compile(r"^(Input|List|String) (?=should)")
_BRANCHES = frozenset({"str", "int"})
"""Pydantic names the branch of a union in an error's path; these look like fields, unlike the names of classes."""


async def read_request(request: Request, kind: type[T], limit: int) -> T:
    """The body as `kind`. Raises `ApiError`: 413 when it is longer than `limit` bytes, else 400."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise invalid(f"Content-Type must be application/json, not {_shown(media_type)}")
    return parse(await read_body(request, limit), kind)


async def read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes, counted as they come: a chunked body has no length to look at before."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise body_too_large(limit)
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise body_too_large(limit)
    except ClientDisconnect:
        raise invalid("the body ended early") from None
    return bytes(body)


def parse(body: bytes, kind: type[T]) -> T:
    """Strict JSON: no NaN, no lone surrogates, bounded depth."""
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise invalid("the body must be a JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    # A union reports every branch: the one that got furthest is the one that was meant.
    details = max(error.errors(include_url=False), key=lambda details: len(details["loc"]))
    path, kind, wanted = _path(details), details["type"], details["msg"].replace(" after validation", "")
    if kind in ("unknown_parameter", "unsupported_parameter"):
        return invalid(f"{_shown(path)} {wanted}", param=path[:80], code=kind)
    if kind == "missing":
        return invalid(f"{path} is missing", param=path, code="missing_parameter")
    wanted = _SUBJECT.sub("", wanted).replace("should", "must")
    if kind not in ("too_short", "too_long", "rule"):  # these say what matters themselves
        wanted += f", not {_shown(details['input'])}"
    return invalid(f"{path}: {wanted}", param=path)


def _path(details: ErrorDetails) -> str:
    """As in ``messages[0].content``."""
    parts = [part for part in details["loc"] if isinstance(part, int) or _is_field(part)]
    if "name" in details.get("ctx", {}):
        parts.append(details["ctx"]["name"])
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _is_field(part: str) -> bool:
    return part not in _BRANCHES and _FIELD.fullmatch(part) is not None


def _shown(value: Any) -> str:
    """A value in a message, whatever it is, as JSON."""
    shown = ""
    for part in json.JSONEncoder().iterencode(value[:60] if isinstance(value, str) else value):
        shown += part
        if len(shown) > 60:
            return shown[:57] + "..."
    return shown
