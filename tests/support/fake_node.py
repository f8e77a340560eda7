"""Plays scheduler and kubelet for the pods of one namespace: binds them, gives them a status, lets them end.

There is nothing behind the pods. What a pod's status becomes is up to `behave`; by default it is ready at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

Pod = dict[str, Any]
Status = dict[str, Any]
NODE = "node-1"
POLL_SECONDS = 0.1


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ready(pod: Pod) -> Status:
    """Every container runs and answers its probes; a Job's pod has succeeded."""
    is_job = any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences") or ())
    if is_job:
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}}
        return status(pod, ended, phase="Succeeded")
    return status(pod, {"running": {"startedAt": now()}}, is_ready=True)


def status(
    pod: Pod, state: Status, *, phase: str = "Running", is_ready: bool = False, last: Status | None = None
) -> Status:
    """The status of a pod whose containers are all in one state."""
    containers = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": is_ready,
            "started": is_ready,
            "restartCount": 1 if last else 0,
            "state": state,
            "lastState": last or {},
        }
        for container in pod["spec"]["containers"]
    ]
    condition = {"type": "Ready", "status": "True" if is_ready else "False", "lastTransitionTime": now()}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
    return {"phase": phase, "conditions": [placed, condition], "containerStatuses": containers}


def unschedulable(message: str) -> Status:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": now(),
    }
    return {"phase": "Pending", "conditions": [condition]}


class FakeNode:
    """Runs in a thread while entered. `behave` is asked for each pod until it gives a status that differs."""

    def __init__(self, api_client: client.ApiClient, namespace: str, *, gpus: int = 1000) -> None:
        self.behave: Callable[[Pod], Status] = ready
        self.gpus = gpus
        self._client, self._core, self._namespace = api_client, client.CoreV1Api(api_client), namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._told: dict[str, Status] = {}

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def pods(self) -> list[Pod]:
        found = self._core.list_namespaced_pod(self._namespace).items
        plain: list[Pod] = self._client.sanitize_for_serialization(found)
        return sorted(plain, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except (client.ApiException, OSError):  # the namespace or the server is on its way out
                time.sleep(0.5)
            self._stop.wait(POLL_SECONDS)

    def _look(self) -> None:
        pods = self.pods()
        used = sum(_gpus(pod) for pod in pods if pod["spec"].get("nodeName"))
        for pod in pods:
            name = pod["metadata"]["name"]
            if "deletionTimestamp" in pod["metadata"]:
                self._forget(name)
            elif pod["status"].get("phase") in ("Succeeded", "Failed"):
                continue
            elif not pod["spec"].get("nodeName") and used + _gpus(pod) > self.gpus:
                message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate."
                self._tell(name, unschedulable(message), once=True)
            else:
                wanted = self.behave(pod)
                if not pod["spec"].get("nodeName") and not _is_unschedulable(wanted):
                    used += _gpus(pod)
                    target = client.V1ObjectReference(kind="Node", name=NODE)
                    body = client.V1Binding(metadata=client.V1ObjectMeta(name=name), target=target)
                    self._core.create_namespaced_pod_binding(name, self._namespace, body, _preload_content=False)
                self._tell(name, wanted, once=_is_unschedulable(wanted))

    def _tell(self, name: str, wanted: Status, *, once: bool) -> None:
        """`once`: the transition time must stay that of the first time."""
        told = self._told.get(name)
        if told is not None:
            same = _without_times(told) == _without_times(wanted)
            if same or (once and _is_unschedulable(told)):
                return
        self._core.patch_namespaced_pod_status(name, self._namespace, {"status": wanted})
        self._told[name] = wanted

    def _forget(self, name: str) -> None:
        try:
            self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0)
        except client.ApiException as error:
            if error.status != 404:
                raise
        self._told.pop(name, None)


def _gpus(pod: Pod) -> int:
    if pod["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    limits = [item.get("resources", {}).get("limits") or {} for item in pod["spec"]["containers"]]
    return sum(int(each.get("nvidia.com/gpu", 0)) for each in limits)


def _is_unschedulable(given: Status) -> bool:
    return any(item.get("reason") == "Unschedulable" for item in given.get("conditions", ()))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_times(item)
            for name, item in value.items()
            if name not in ("lastTransitionTime", "startedAt", "finishedAt")
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value
