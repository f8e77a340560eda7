"""What the watches show of one service at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The service itself, None when it is gone, its children by kind, its pods (workers and downloads)."""

    namespace: str
    name: str
    service: Object | None
    children: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    pods: Sequence[Object] = ()

    def child(self, kind: str, name: str) -> Object | None:
        for child in self.children.get(kind, ()):
            if child["metadata"]["name"] == name:
                return child
        return None

    def pods_of(self, component: str) -> tuple[Object, ...]:
        """By age, oldest first; `component` is the value of their component label."""
        found = [pod for pod in self.pods if _component(pod) == component]
        return tuple(
            sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
        )


def is_owned_by(child: Mapping[str, Any], uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in child["metadata"].get("ownerReferences") or ())


def _component(pod: Mapping[str, Any]) -> str | None:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return labels.get("serving.minisglang.io/component")
