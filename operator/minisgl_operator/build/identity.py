"""Whose children they are: their names, labels and owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minisgl_operator import api

Object = dict[str, Any]
"""An object of Kubernetes, or a part of one, as in its JSON."""
Component = Literal["worker", "download"]

SERVICE_LABEL = f"{api.GROUP}/service"
COMPONENT_LABEL = f"{api.GROUP}/component"
REVISION_LABEL = f"{api.GROUP}/revision"
"""On worker pods, and not in any selector: a selector cannot change."""

WORKER_CONTAINER = "worker"
DOWNLOAD_CONTAINER = "download"
PORT_NAME = "http"


@dataclass(frozen=True)
class Identity:
    """One MiniSGLangService."""

    name: str
    namespace: str
    uid: str
    """Empty for a resource that is in a file only. Such a one owns nothing."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Identity:
        metadata = body["metadata"]
        return cls(metadata["name"], metadata.get("namespace") or "default", metadata.get("uid") or "")


def cache_name(identity: Identity) -> str:
    return f"{identity.name}-cache"


def download_name(identity: Identity, digest: str) -> str:
    return f"{identity.name}-download-{digest}"


def controller_revision_name(identity: Identity, revision: str) -> str:
    return f"{identity.name}-{revision}"


def labels(identity: Identity, component: Component | None = None) -> dict[str, str]:
    common = {
        "app.kubernetes.io/name": "minisglang",
        "app.kubernetes.io/instance": identity.name,
        "app.kubernetes.io/managed-by": "minisgl-operator",
        SERVICE_LABEL: identity.name,
    }
    return common if component is None else {**common, COMPONENT_LABEL: component}


def selector(identity: Identity) -> dict[str, str]:
    """The labels by which worker pods are found."""
    return {SERVICE_LABEL: identity.name, COMPONENT_LABEL: WORKER_CONTAINER}


def selector_text(identity: Identity) -> str:
    return ",".join(f"{key}={value}" for key, value in selector(identity).items())


def metadata(
    identity: Identity,
    name: str | None = None,
    *,
    owned: bool = True,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """Of a child, which is called like the service unless `name` is given, and is deleted with it if `owned`."""
    made: Object = {
        "name": name or identity.name,
        "namespace": identity.namespace,
        "labels": labels(identity),
    }
    if annotations:
        made["annotations"] = dict(annotations)
    if owned and identity.uid:
        made["ownerReferences"] = [owner_reference(identity)]
    return made


def owner_reference(identity: Identity) -> Object:
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "name": identity.name,
        "uid": identity.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
