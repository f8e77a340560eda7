"""The page for people at ``/``, and the JSON that it is fed by.

The page is one static file without data. It asks for the state a few times a second, with the key if there is one;
only then does the API server ask the scheduler for its last steps.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

import minisgl
from minisgl.server.config import ServerConfig
from minisgl.server.errors import invalid
from minisgl.server.frontend import Frontend
from minisgl.server.metrics import Metrics

FILE = Path(__file__).with_name("page.html")
SHOWN_REQUESTS = 64
"""The oldest requests in flight, at most so many of them, are told one by one."""
_NUMBER = re.compile(r"-?[0-9]{1,15}")


def add_page(app: FastAPI, config: ServerConfig, frontend: Frontend, metrics: Metrics) -> None:
    """Serve the page at ``/`` and its state at ``/page/state``."""
    text = FILE.read_text(encoding="utf-8")
    headers = {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-cache",
        "content-security-policy": _policy(text),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(text, headers=headers)

    @app.get("/page/state", include_in_schema=False)
    async def state(request: Request) -> Response:
        after = request.query_params.get("after", "-1")
        if not _NUMBER.fullmatch(after):
            raise invalid("after: must be the number of a step", param="after")
        frontend.watch()
        body = msgspec.json.encode(_state(config, frontend, metrics, int(after)))
        return Response(body, headers={"content-type": "application/json", "cache-control": "no-store"})


def _policy(text: str) -> str:
    """Nothing may run, apply or be loaded but what stands in the file itself, and talks to this server."""
    allowed = {}
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        allowed[tag] = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _state(config: ServerConfig, frontend: Frontend, metrics: Metrics, after: int) -> dict[str, Any]:
    limits, stats = frontend.readiness.limits, metrics.stats
    return {
        "model": config.served_model_name,
        "version": minisgl.__version__,
        "not_ready": frontend.readiness.reason(),
        "limits": limits,
        "now": round(time.monotonic(), 6),
        "running": stats.running,
        "queued": stats.queued,
        "pages": {"total": stats.total_pages, "used": stats.used_pages, "cached": stats.cached_pages},
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "generated_tokens": metrics.generated,
        "retractions": stats.retractions,
        "in_flight": frontend.in_flight(SHOWN_REQUESTS),
        **frontend.recent.since(after),
    }
