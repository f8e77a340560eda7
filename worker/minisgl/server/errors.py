"""Errors of the HTTP surface, in the shape that OpenAI clients understand."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


class ApiError(Exception):
    """A request ends with this instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The error object, ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code},
        }

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()),
            status_code=self.status,
            headers=self.headers,
            media_type="application/json",
        )


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is wrong: sending it again does not help."""
    return ApiError(400, message, param=param, code=code)


def wrong_key() -> ApiError:
    return ApiError(
        401,
        "missing or wrong API key: send it as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def unknown_model(name: str, served: str) -> ApiError:
    return ApiError(
        404,
        f"model {_short(name)} does not exist; this server serves {served!r}",
        param="model",
        code="model_not_found",
    )


def body_too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request body is larger than {limit} bytes", code="body_too_large")


def queue_full(in_flight: int, limit: int) -> ApiError:
    return ApiError(
        429,
        f"the queue is full: {in_flight} requests are in flight, at most {limit} may be; try again later",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def unavailable(message: str, *, code: str) -> ApiError:
    """The server cannot serve now; another one, or this one later, may."""
    return ApiError(503, message, kind="service_unavailable_error", code=code, headers={"Retry-After": "1"})


def internal() -> ApiError:
    """Something failed that is not the client's doing; the details are in the server's log."""
    return ApiError(500, "internal server error", kind="server_error", code="internal_error")


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
