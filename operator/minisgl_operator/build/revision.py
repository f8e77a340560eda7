"""Revisions: which specs make the same pods, and the template that each was built with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from minisgl_operator import api
from minisgl_operator.build.cache import managed, needs_cache
from minisgl_operator.build.identity import Identity, Object, controller_revision_name, metadata

OTHER_FIELDS = (
    "replicas",
    "autoscaling",
    "tls",
    "networkPolicy",
    "service",
    "monitoring",
    "gateway",
    "suspend",
)
"""Of the spec, those that no pod sees. A new field is taken to be seen until it is named here."""
ROLLOUT_FIELDS = ("strategy", "surgeTimeoutSeconds", "minReadySeconds", "progressDeadlineSeconds")
"""Of `rollout`, those that are about the Deployment and not its pods."""


def revision_of(spec: api.Spec) -> str:
    """Ten hexadecimal digits over what shapes the pods, without what is at its default.

    An operator of another version gives the same, so that its arrival rolls nothing. This holds as long as the
    default of a field never changes and a new field's default means what there was before.
    """
    shape = json.dumps(_shape(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(shape.encode()).hexdigest()[:10]


def _shape(spec: api.Spec) -> Object:
    shape: Object = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for field in OTHER_FIELDS:
        shape.pop(field, None)
    for field in ROLLOUT_FIELDS:
        shape.get("rollout", {}).pop(field, None)
    shape = {field: value for field, value in shape.items() if value != {}}
    if needs_cache(spec):
        # Pods see the claim's name and nothing else of the cache; the token goes to the Job.
        shape["cache"] = {} if managed(spec) else {"existingClaim": shape["cache"]["existingClaim"]}
        shape["model"]["huggingFace"].pop("tokenSecretRef", None)
    return shape


def controller_revision(identity: Identity, revision: str, number: int, template: Mapping[str, Any]) -> Object:
    """Keeps `template`. The `number` only grows from one revision to the next; it tells the newest."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata(identity, controller_revision_name(identity, revision)),
        "revision": number,
        "data": {"template": deepcopy(dict(template))},
    }


def template_of(controller_revision: Mapping[str, Any]) -> Object:
    """The pod template that was kept."""
    template: Object = deepcopy(controller_revision["data"]["template"])
    return template
