"""Objects of a cluster in given states, in the shapes that the scheduler, the kubelet and the controllers give."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from minisgl_operator import api
from minisgl_operator.observe.observed import Observed

Object = dict[str, Any]

NAME = "qwen3"
NEW, OLD = "aaaaaaaaaa", "bbbbbbbbbb"
"""The revision that the spec asks for, and the one before."""
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
IMAGE = "registry.example/minisgl-worker:1.0"

GPU_SHORTAGE = (
    "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient nvidia.com/gpu. "
    "no new claims to deallocate, preemption: 0/3 nodes are available: "
    "1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
)


def at(seconds: float) -> str:
    """The time so many seconds before now."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


# States of containers.


def running(seconds: float = 5) -> Object:
    return {"running": {"startedAt": at(seconds)}}


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(code: int, message: str = "", *, reason: str = "", lasted: float = 20) -> Object:
    name = reason or ("Completed" if code == 0 else "Error")
    return {
        "terminated": {
            "exitCode": code,
            "reason": name,
            "startedAt": at(lasted + 10),
            "finishedAt": at(10),
            **({"message": message} if message else {}),
        }
    }


def container(
    name: str,
    state: Object,
    *,
    last: Object | None = None,
    restarts: int = 0,
    ready: bool = False,
    started: bool | None = None,
) -> Object:
    return {
        "name": name,
        "image": IMAGE,
        "imageID": "",
        "state": state,
        "lastState": last or {},
        "restartCount": restarts,
        "ready": ready,
        "started": ready if started is None else started,
    }


# Pods.


def pod(
    *containers: Object,
    name: str = "qwen3-7d4b9-x2x8z",
    revision: str = NEW,
    age: float = 60,
    phase: str = "Running",
    ready: bool = False,
    terminating: bool = False,
    scheduled: bool = True,
    init: Object | None = None,
    conditions: tuple[Object, ...] = (),
    status: Mapping[str, str] | None = None,
) -> Object:
    metadata: Object = {
        "name": name,
        "creationTimestamp": at(age),
        "labels": {"serving.minisglang.io/service": NAME, "serving.minisglang.io/revision": revision},
    }
    if terminating:
        metadata |= {"deletionTimestamp": at(-100), "deletionGracePeriodSeconds": 150}
    spec: Object = {"containers": [{"name": item["name"], "image": IMAGE} for item in containers]}
    if init is not None:
        spec["initContainers"] = [{"name": init["name"], "image": IMAGE}]
    if scheduled:
        spec["nodeName"] = "node-1"
    placed: tuple[Object, ...] = ({"type": "PodScheduled", "status": "True", "lastTransitionTime": at(age)},)
    readiness: Object = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at(age)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {
            "phase": phase,
            "conditions": [readiness, *(conditions or placed)],
            "containerStatuses": list(containers) if scheduled else [],
            **({"initContainerStatuses": [init]} if init is not None and scheduled else {}),
            **(status or {}),
        },
    }


def serving(name: str = "qwen3-7d4b9-x2x8z", *, revision: str = NEW, age: float = 600) -> Object:
    return pod(container("worker", running(age), ready=True), name=name, revision=revision, age=age, ready=True)


def starting(name: str = "qwen3-7d4b9-x2x8z", *, revision: str = NEW, age: float = 20) -> Object:
    return pod(container("worker", running(age)), name=name, revision=revision, age=age)


def draining(name: str = "qwen3-7d4b9-x2x8z", *, revision: str = OLD) -> Object:
    state = container("worker", running(600), ready=True)
    return pod(state, name=name, revision=revision, age=600, ready=True, terminating=True)


def unplaced(
    message: str = GPU_SHORTAGE, *, name: str = "qwen3-7d4b9-x2x8z", revision: str = NEW, since: float = 20
) -> Object:
    """A pod that no node takes."""
    condition: Object = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": at(since),
    }
    worker = container("worker", waiting("ContainerCreating"))
    return pod(
        worker, name=name, revision=revision, age=since, phase="Pending", scheduled=False, conditions=(condition,)
    )


def evicted(name: str = "qwen3-7d4b9-evict", *, age: float = 300, revision: str = NEW) -> Object:
    message = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
    return pod(
        container("worker", terminated(137, reason="ContainerStatusUnknown")),
        name=name,
        revision=revision,
        age=age,
        phase="Failed",
        status={"reason": "Evicted", "message": message},
    )


def download_pod(
    state: Object,
    *,
    last: Object | None = None,
    name: str = "qwen3-download-1",
    age: float = 60,
    phase: str = "Running",
) -> Object:
    return pod(container("download", state, last=last), name=name, revision="", age=age, phase=phase)


# What makes and holds pods.


def deployment(
    revision: str = NEW,
    *,
    fallback: str = "",
    progressing: str = "",
    failure: str = "",
    generation: int = 3,
    seen: int = 3,
) -> Object:
    """A Deployment whose condition `Progressing` has the given reason; its pods are refused with `failure`."""
    conditions: list[Object] = []
    if progressing:
        status = "False" if progressing == "ProgressDeadlineExceeded" else "True"
        conditions.append({"type": "Progressing", "status": status, "reason": progressing, "message": "..."})
    if failure:
        conditions.append(
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}
        )
    annotations = {"serving.minisglang.io/in-place-fallback": fallback} if fallback else {}
    return {
        "metadata": {"name": NAME, "generation": generation, "annotations": annotations},
        "spec": {"template": {"metadata": {"labels": {"serving.minisglang.io/revision": revision}}}},
        "status": {"observedGeneration": seen, "conditions": conditions},
    }


def job(condition: str = "", message: str = "") -> Object:
    conditions = [{"type": condition, "status": "True", "message": message}] if condition else []
    return {"metadata": {"name": "qwen3-download-1a2b3c4d"}, "status": {"conditions": conditions}}


def claim(phase: str = "Bound", name: str = "qwen3-cache") -> Object:
    return {"metadata": {"name": name}, "status": {"phase": phase}}


HUGGING_FACE: Object = {"model": {"huggingFace": {"repo": "Qwen/Qwen3-0.6B"}}}
CACHED: Object = {**HUGGING_FACE, "cache": {"size": "10Gi"}}
OCI: Object = {"model": {"oci": {"image": "registry.example/models/qwen3:1"}}}
PVC: Object = {"model": {"pvc": {"claimName": "models"}}}


def observed(*pods: Object, spec: Object = OCI, status: Object | None = None, **fields: Any) -> Observed:
    """What a reconcile saw. The Deployment holds the new revision, rolled out, unless `fields` say otherwise."""
    service: Object = {"metadata": {"name": NAME, "namespace": "default", "generation": 4}, "spec": spec}
    if status is not None:
        service["status"] = status
    typed = api.Spec.model_validate(spec)
    given: Object = {
        "deployment": deployment(progressing="NewReplicaSetAvailable"),
        "job": None,
        "download_pods": (),
        "claim": None,
        "needs_claim": typed.model.pvc is not None or typed.cache is not None,
        "missing": (),
        "autoscaler_acted": frozenset(),
        "mount_failures": {},
        "claim_events": "",
        "progress": None,
        "startup": None,
        "revision": NEW,
        "now": NOW,
    }
    return Observed(service=service, spec=typed, pods=pods, **(given | fields))
