"""The state of one pod, as far as a service's conditions depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from minisgl_operator.build.identity import REVISION_LABEL
from minisgl_operator.observe.containers import DOWNLOAD, Failure, clipped, container_failure
from minisgl_operator.observe.scheduling import PVC_PENDING, unschedulable_reason, without_preemption
from minisgl_operator.observe.times import parse_time

Download = Literal["none", "waiting", "running", "done"]


@dataclass(frozen=True)
class Reason:
    """Why no node takes the pod, and since when."""

    reason: str
    message: str
    since: datetime


@dataclass(frozen=True)
class PodState:
    name: str
    revision: str
    created: datetime
    ready: bool
    """Takes requests: a pod that is terminating does not."""
    terminating: bool
    finished: bool
    """It ended and will not run again; it stays only to be looked at."""
    scheduled: bool
    """It has a node, and with it the node's GPUs."""
    unschedulable: Reason | None
    failure: Failure | None
    """None for a pod that is ready, or on its way out."""
    download: Download
    """How far its own download of the model is; "none" when it does not download."""


def pod_state(pod: dict[str, Any], *, gpu_resource: str, now: datetime, mount_failure: str = "") -> PodState:
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    terminating = metadata.get("deletionTimestamp") is not None
    finished = status.get("phase") in ("Failed", "Succeeded")
    ready = not terminating and not finished and _condition(pod, "Ready").get("status") == "True"
    placing = None if terminating or finished else _placing(pod, gpu_resource)
    failure = None if ready or terminating else _failure(pod, now, mount_failure)
    if placing is not None and placing.reason == PVC_PENDING:
        failure, placing = Failure("ModelCached", PVC_PENDING, placing.message), None
    return PodState(
        name=metadata["name"],
        revision=(metadata.get("labels") or {}).get(REVISION_LABEL, ""),
        created=parse_time(metadata.get("creationTimestamp")),
        ready=ready,
        terminating=terminating,
        finished=finished,
        scheduled=bool(spec.get("nodeName")),
        unschedulable=placing,
        failure=failure,
        download=_download(pod),
    )


def _condition(pod: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _placing(pod: dict[str, Any], gpu_resource: str) -> Reason | None:
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") == "SchedulerError":
        return None  # an error of the scheduler itself is tried again at once
    message = condition.get("message", "")
    return Reason(
        reason=unschedulable_reason(message, gpu_resource),
        message=clipped(without_preemption(message)),
        since=parse_time(condition.get("lastTransitionTime")),
    )


def _failure(pod: dict[str, Any], now: datetime, mount_failure: str) -> Failure | None:
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted":
        return Failure("Degraded", "Evicted", clipped(status.get("message") or "evicted from its node"))
    images = _images(pod)
    waits = False
    for container in _statuses(pod):
        failure = container_failure(container, images.get(container["name"], "its image"), now)
        if failure is not None:
            return failure
        waits = waits or "waiting" in (container.get("state") or {})
    if status.get("phase") == "Failed":
        parts = [status.get("reason", ""), status.get("message", "")]
        return Failure("Degraded", "PodFailed", clipped(": ".join(part for part in parts if part)) or "failed")
    if mount_failure and waits:
        return Failure("Degraded", "FailedMount", clipped(mount_failure))
    return None


def _statuses(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _images(pod: dict[str, Any]) -> dict[str, str]:
    """The image of each container as its spec names it: the status gives it in other words, once it is pulled."""
    spec = pod.get("spec") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return {container["name"]: container.get("image", "its image") for container in containers}


def _download(pod: dict[str, Any]) -> Download:
    spec = pod.get("spec") or {}
    names = [
        container["name"] for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    ]
    if DOWNLOAD not in names:
        return "none"
    for container in _statuses(pod):
        if container["name"] == DOWNLOAD:
            state = container.get("state") or {}
            if "running" in state:
                return "running"
            return "done" if (state.get("terminated") or {}).get("exitCode") == 0 else "waiting"
    return "waiting"
