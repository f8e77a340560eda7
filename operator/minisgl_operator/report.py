"""The status patch, and an Event for each condition that changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from minisgl_operator import api
from minisgl_operator.cluster import Cluster, ClusterError
from minisgl_operator.observe.status import transitions

COMPONENT = "minisgl-operator"
WAITING = ("Downloading", "PVCPending", "Pending", "Starting")
"""Reasons of conditions that are not satisfied yet, and for which nobody has to do anything."""

Object = dict[str, Any]
log = logging.getLogger(__name__)


def report(cluster: Cluster, service: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Write what differs from the status that `service` has; nothing when nothing does."""
    old = service.get("status") or {}
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    # A merge patch replaces a list, and keeps what an object has and the patch does not name.
    for name, value in changed.items():
        if isinstance(value, dict):
            changed[name] = {**dict.fromkeys(old.get(name) or {}), **value}
    changed.update(dict.fromkeys(name for name in old if name not in new))
    if not changed:
        return
    namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
    cluster.patch_status(namespace, name, changed)
    before, after = _conditions(old), _conditions(new)
    for condition in transitions(before, after):
        said = f"{condition.type}={condition.status}" + (f": {condition.message}" if condition.message else "")
        log.info("%s/%s: %s (%s)", namespace, name, said, condition.reason)
        try:
            cluster.emit(event(service, condition, said))
        except ClusterError as error:  # the status says it all the same
            log.debug("%s/%s: no event: %s", namespace, name, error)


def invalid_status(service: Mapping[str, Any], error: ValidationError) -> Object:
    """Of a spec that the CRD let through and this operator does not know: they are of two versions."""
    first = error.errors()[0]
    place = ".".join(["spec", *(str(part) for part in first["loc"])])
    message = f"{place}: {first['msg']}; the CRD and the operator are of two versions"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = service.get("status") or {}
    before = {condition.type: condition for condition in _conditions(old)}
    changed = []
    for kind in ("Ready", "ConfigValid"):
        known = before.get(kind)
        stays = known is not None and known.status == "False"
        condition = api.Condition(
            type=kind,
            status="False",
            observed_generation=service["metadata"].get("generation"),
            last_transition_time=known.last_transition_time if known is not None and stays else now,
            reason="InvalidSpec",
            message=message,
        )
        before[kind] = condition
    changed = [condition.model_dump(by_alias=True, exclude_none=True) for condition in before.values()]
    return {**old, "observedGeneration": service["metadata"].get("generation"), "conditions": changed}


def is_trouble(condition: api.Condition) -> bool:
    """Whether somebody should look, which makes its Event a warning."""
    if condition.type == "Degraded":
        return condition.status == "True"
    if condition.type == "Progressing":
        return condition.reason == "DeadlineExceeded"
    if condition.type in ("ConfigValid", "Schedulable", "ModelCached"):
        return condition.status == "False" and condition.reason not in WAITING
    return False


def event(service: Mapping[str, Any], condition: api.Condition, message: str) -> Object:
    metadata = service["metadata"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": "Warning" if is_trouble(condition) else "Normal",
        "reason": condition.reason,
        "message": message[:1000],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _conditions(status: Mapping[str, Any]) -> list[api.Condition]:
    return [api.Condition.model_validate(condition) for condition in status.get("conditions") or ()]
