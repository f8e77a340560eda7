"""What the operator counts."""

from __future__ import annotations

from typing import Any

from minisgl_operator.handlers import count_ready


def service(status: str, reason: str) -> dict[str, Any]:
    other = {"type": "Available", "status": "True", "reason": "Serving"}
    return {"status": {"conditions": [other, {"type": "Ready", "status": status, "reason": reason}]}}


def test_services_at_rest_are_not_missed() -> None:
    found = [
        service("True", "Serving"),
        service("False", "OOMKilled"),
        service("False", "Suspended"),
        service("False", "ScaledToZero"),
        {},  # a new one
    ]
    assert count_ready(found) == {"true": 1, "false": 2}
