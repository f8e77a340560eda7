"""Each reason that a cluster can give for a service not to serve: within 10 seconds, and gone with its cause.

The causes are pods in the states that scheduler and kubelet give them; each wait is bounded by the 10 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from support.fake_node import FakeNode, Pod, Status, now, ready, status, unschedulable
from support.services import REASON_SECONDS, Services
from support.waiting import until

pytestmark = pytest.mark.timeout(300)
HUB = {"repo": "Qwen/Qwen3-0.6B"}


def waiting(reason: str, message: str = "") -> Callable[[Pod], Status]:
    return lambda pod: status(pod, {"waiting": {"reason": reason, "message": message}}, phase="Pending")


def ended(code: int, message: str = "", reason: str = "Error", *, loop: bool = True) -> Callable[[Pod], Status]:
    """A container that ends again and again; or has ended once and runs again."""

    def behave(pod: Pod) -> Status:
        over = {"exitCode": code, "reason": reason, "message": message, "startedAt": now(), "finishedAt": now()}
        last = {"terminated": over}
        if loop:
            state = {
                "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
            }
        else:
            state = {"running": {"startedAt": now()}}
        return status(pod, state, last=last)

    return behave


def unplaced(why: str) -> Callable[[Pod], Status]:
    return lambda _: unschedulable(f"0/3 nodes are available: 3 {why}. no new claims to deallocate.")


TP_ERROR = (
    "minisgl: error: --tp 2: LlamaForCausalLM with 9 attention heads cannot be split over 2 ranks; allowed: 1, 3"
)
CASES: dict[str, tuple[Callable[[Pod], Status], str, str, str]] = {
    "InsufficientGPU": (unplaced("Insufficient nvidia.com/gpu"), "Schedulable", "False", "InsufficientGPU"),
    "UntoleratedTaint": (unplaced("node(s) had untolerated taint(s)"), "Schedulable", "False", "UntoleratedTaint"),
    "NodeSelectorMismatch": (
        unplaced("node(s) didn't match Pod's node affinity/selector"),
        "Schedulable",
        "False",
        "NodeSelectorMismatch",
    ),
    "InsufficientMemory": (unplaced("Insufficient memory"), "Schedulable", "False", "InsufficientMemory"),
    "OOMKilled": (ended(137, reason="OOMKilled"), "Degraded", "True", "OOMKilled"),
    "CrashLoopBackOff": (ended(1), "Degraded", "True", "CrashLoopBackOff"),
    "EngineDied": (ended(1, "rank 1 died", loop=False), "Degraded", "True", "EngineDied"),
    "ImagePullBackOff": (waiting("ImagePullBackOff", "not found"), "Degraded", "True", "ImagePullError"),
    "ErrImageNeverPull": (waiting("ErrImageNeverPull", "not present"), "Degraded", "True", "ImagePullError"),
    "TensorParallelMismatch": (ended(2, TP_ERROR), "ConfigValid", "False", "TensorParallelMismatch"),
    "InvalidEngineOption": (
        ended(2, "minisgl: error: --max-seq-len 9999: the model reads at most 8192 tokens"),
        "ConfigValid",
        "False",
        "InvalidEngineOption",
    ),
    "InvalidModel": (
        ended(2, "minisgl: error: /model: no config.json"),
        "ConfigValid",
        "False",
        "InvalidModel",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pod_in_trouble_shows_and_recovers(case: str, services: Services, node: FakeNode) -> None:
    behave, kind, value, reason = CASES[case]
    node.behave = behave
    services.create()
    until(node.pods, "pod", 20)
    found = services.wait(kind, value, reason, seconds=REASON_SECONDS)
    assert found["message"]
    summary = services.condition("Ready")
    assert (summary["status"], summary["reason"]) == ("False", reason)
    until(lambda: ("Warning", reason) in services.events(), f"a warning {reason}", 5, services.events)
    node.behave = ready
    expected = "False" if value == "True" else "True"
    services.wait(kind, expected, seconds=REASON_SECONDS)
    services.wait("Ready", "True")


def test_an_evicted_pod_shows_until_another_serves(services: Services, node: FakeNode) -> None:
    services.create()
    services.wait("Ready", "True")
    node.behave = lambda _: unschedulable("0/1 nodes are available: 1 Insufficient memory.")
    name = node.pods()[0]["metadata"]["name"]
    gone = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    services.core.patch_namespaced_pod_status(name, services.namespace, {"status": gone})
    services.wait("Degraded", "True", "Evicted", seconds=REASON_SECONDS)
    node.behave = ready
    services.core.delete_collection_namespaced_pod(
        services.namespace, field_selector="status.phase=Pending", grace_period_seconds=0
    )
    services.wait("Ready", "True")


DOWNLOADS = {10: "NotFound", 11: "AuthFailed", 12: "NoSpace", 13: "HubUnreachable"}


@pytest.mark.parametrize("code", DOWNLOADS)
def test_a_download_that_fails(code: int, services: Services, node: FakeNode) -> None:
    """In a pod of its own that fills a cache, and in the init container of a service without a cache."""
    error = "minisgl.download: error: this is why"

    def fails(pod: Pod) -> Status:
        over = {"exitCode": code, "reason": "Error", "message": error, "startedAt": now(), "finishedAt": now()}
        waits = {"waiting": {"reason": "CrashLoopBackOff"}}
        found = status(pod, {"waiting": {"reason": "PodInitializing"}}, phase="Pending")
        item = {"name": "download", "image": "i", "imageID": "", "ready": False, "restartCount": 1}
        found["initContainerStatuses"] = [{**item, "state": waits, "lastState": {"terminated": over}}]
        return found

    node.behave = fails
    services.create()
    until(node.pods, "pod", 20)
    found = services.wait("ModelCached", "False", DOWNLOADS[code], seconds=REASON_SECONDS)
    assert "this is why" in found["message"]
    node.behave = ready
    services.wait("Ready", "True")


def test_a_secret_that_is_missing(services: Services, node: FakeNode) -> None:
    services.create(model={"huggingFace": HUB | {"tokenSecretRef": {"name": "hf"}}})
    found = services.wait("ConfigValid", "False", "SecretMissing", seconds=REASON_SECONDS)
    assert "hf" in found["message"] and "tokenSecretRef" in found["message"]
    assert services.deployment() is None and not node.pods()
    secret: dict[str, Any] = {"metadata": {"name": "hf"}, "stringData": {"OTHER": "x"}}
    services.core.create_namespaced_secret(services.namespace, secret)
    until(lambda: "HF_TOKEN" in services.condition("ConfigValid")["message"], "the missing key", REASON_SECONDS)
    services.core.patch_namespaced_secret("hf", services.namespace, {"stringData": {"HF_TOKEN": "x"}})
    services.wait("ConfigValid", "True", seconds=REASON_SECONDS)
    services.wait("Ready", "True")
    services.core.delete_namespaced_secret("hf", services.namespace)
    services.wait("ConfigValid", "False", "SecretMissing", seconds=REASON_SECONDS)
    assert len(node.pods()) == 1, "what serves goes on"


@pytest.mark.usefixtures("node")
def test_a_field_of_a_later_version_is_not_ignored(services: Services) -> None:
    services.create()
    services.wait("Ready", "True")
    before = services.deployment()
    services.patch(tls={"secretName": "t"}, engine={"pageSize": 64})
    found = services.wait("ConfigValid", "False", "NotSupported", seconds=REASON_SECONDS)
    assert "spec.tls" in found["message"]
    time.sleep(2)
    assert before is not None and services.deployment()["spec"] == before["spec"]  # type: ignore[index]
    services.patch(tls=None)
    services.wait("Ready", "True")
    services.create("bucket", model={"s3": {"uri": "s3://bucket/model"}})
    services.wait("ConfigValid", "False", "NotSupported", name="bucket", seconds=REASON_SECONDS)


def test_a_claim_that_never_binds(services: Services) -> None:
    services.create(model={"pvc": {"claimName": "weights"}})
    found = services.wait("ModelCached", "False", "PVCPending", seconds=REASON_SECONDS)
    assert "weights" in found["message"]
    services.create("cached", cache={"size": "1Gi", "storageClassName": "nowhere"})
    services.wait("ModelCached", "False", "PVCPending", name="cached", seconds=REASON_SECONDS)


@pytest.mark.usefixtures("node")
def test_what_the_api_server_refuses(services: Services) -> None:
    services.create(
        scheduling={"affinity": {"nodeAffinity": {"required": 1}}, "tolerations": [{"operator": "Maybe"}]}
    )
    found = services.wait("ConfigValid", "False", "Refused", seconds=REASON_SECONDS)
    assert "Deployment" in found["message"]
    services.patch(scheduling=None)
    services.wait("Ready", "True")


def test_pods_that_a_quota_refuses(services: Services) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    services.core.create_namespaced_resource_quota(services.namespace, quota)
    time.sleep(1)
    services.create()
    services.wait("Degraded", "True", "FailedCreate", seconds=REASON_SECONDS)


def test_a_deadline_that_passes(services: Services, node: FakeNode) -> None:
    node.behave = lambda pod: status(pod, {"running": {"startedAt": now()}})
    services.create(rollout={"progressDeadlineSeconds": 10})
    services.wait("Progressing", "False", "DeadlineExceeded", seconds=10 + REASON_SECONDS)
    node.behave = ready
    services.wait("Ready", "True")
    services.wait("Progressing", "False", "Complete")
