"""What was applied last, so that a reconcile that would change nothing writes nothing.

An object is left alone while two things hold: what we want is what we applied last, and what the watch shows is
what the API server answered to that. Both are compared as fingerprints, so no field's canonical form ("1024Mi" and
"1Gi") has to be known here. Whatever someone else changes shows as another fingerprint, and the object is applied
again.

This is a memory for speed alone: a new process knows nothing, and applies each object once.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LAG_SECONDS = 10.0
"""How long the watch may show an object as it was before it was applied."""

Key = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True)
class _Applied:
    wanted: str
    answered: str
    seen_before: str | None
    """Resource version that the watch showed when it was applied, None for no object."""
    lags_until: float
    """Until then, on the monotonic clock, a watch that still shows `seen_before` only lags behind. Past, once the
    watch has shown the answer."""


class AppliedMemory:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._applied: dict[Key, _Applied] = {}

    def is_current(self, wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
        known = self._applied.get(key_of(wanted))
        if known is None or known.wanted != _digest(wanted):
            return False
        if live is not None and fingerprint(live) == known.answered:
            self._applied[key_of(wanted)] = replace(known, lags_until=-math.inf)
            return True
        return _version(live) == known.seen_before and self._clock() < known.lags_until

    def remember(
        self, wanted: Mapping[str, Any], live: Mapping[str, Any] | None, answer: Mapping[str, Any]
    ) -> None:
        lags_until = self._clock() + LAG_SECONDS
        self._applied[key_of(wanted)] = _Applied(_digest(wanted), fingerprint(answer), _version(live), lags_until)

    def forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._applied.pop(key, None)


def key_of(child: Mapping[str, Any]) -> Key:
    return child["kind"], child["metadata"]["namespace"], child["metadata"]["name"]


def fingerprint(live: Mapping[str, Any]) -> str:
    """Of all that is not its own progress: no status, no version, nothing that its controller annotates."""
    metadata = live["metadata"]
    annotations = {
        name: value
        for name, value in (metadata.get("annotations") or {}).items()
        if not name.startswith(
            ("deployment.kubernetes.io/", "pv.kubernetes.io/", "volume.", "batch.kubernetes.io/")
        )
    }
    rest = {
        name: value for name, value in live.items() if name not in ("metadata", "status", "kind", "apiVersion")
    }
    kept = {
        "uid": metadata.get("uid"),
        "labels": metadata.get("labels"),
        "owners": metadata.get("ownerReferences"),
        "annotations": annotations,
        "deleted": "deletionTimestamp" in metadata,
    }
    return _digest({"metadata": kept, **rest})


def _version(live: Mapping[str, Any] | None) -> str | None:
    return None if live is None else live["metadata"].get("resourceVersion")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
