"""Times as the API server writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_time(text: str | None) -> datetime:
    """A time of the API server; the beginning of time when it gave none."""
    return datetime.fromtimestamp(0, UTC) if not text else datetime.fromisoformat(text)


def format_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
