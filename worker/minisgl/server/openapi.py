"""``/openapi.json``: what the endpoints take and give, for tools that read such a document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The parameter that is wrong."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def body_of(kind: type[BaseModel], *media_types: str) -> dict[str, Any]:
    """What an operation's description has besides: its body, and the media types of its answer.

    Bodies are read by `minisgl.server.body`, whose limits and errors FastAPI's own parameters do not have.
    """
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    answer = {"description": "The answer", "content": {media_type: {} for media_type in media_types}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": answer},
    }


def describe(app: FastAPI, bodies: list[type[BaseModel]], model: str) -> None:
    """Let `app` describe itself when it is asked, with `bodies` that say `model`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies, model)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, bodies: list[type[BaseModel]], model: str) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = [(body, "validation") for body in bodies]
    _, found = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas = found["$defs"] | {"Error": ERROR}
    for body in bodies:
        schemas[body.__name__]["properties"]["model"]["enum"] = [model, None][
            : 1 + ("model" not in _required(body))
        ]
        schemas[body.__name__]["properties"]["model"].pop("anyOf", None)
    document.setdefault("components", {})["schemas"] = schemas
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own
            operation["responses"]["default"] = {"description": "No answer, and why", "content": error}
    return document


def _required(body: type[BaseModel]) -> set[str]:
    return {name for name, field in body.model_fields.items() if field.is_required()}
