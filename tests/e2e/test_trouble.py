"""What goes wrong in a cluster, made to go wrong: each shows as a condition within 10 seconds of its cause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.kubectl import Kubectl
from support.waiting import until

pytestmark = pytest.mark.timeout(600)
REASON_SECONDS = 10.0
CAUSE_SECONDS = 120.0
Document = dict[str, Any]


@dataclass(frozen=True)
class Trouble:
    """A change of the example's spec, what shows in the cluster, and the condition that must tell of it."""

    spec: Document
    cause: Callable[[Kubectl], bool]
    kind: str
    status: str
    reason: str


def waiting(*reasons: str) -> Callable[[Kubectl], bool]:
    def seen(kubectl: Kubectl) -> bool:
        return any(state.get("waiting", {}).get("reason") in reasons for state in _states(kubectl))

    return seen


def ended(code: int, container: str = "worker") -> Callable[[Kubectl], bool]:
    def seen(kubectl: Kubectl) -> bool:
        return any(state.get("terminated", {}).get("exitCode") == code for state in _states(kubectl, container))

    return seen


def _states(kubectl: Kubectl, name: str | None = None) -> Iterator[Document]:
    for pod in kubectl.items("pods"):
        status = pod.get("status", {})
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            if name in (None, container["name"]) and pod["metadata"]["name"] != "client":
                yield container.get("state", {})
                yield container.get("lastState", {})


def unscheduled(kubectl: Kubectl) -> bool:
    return any(
        condition.get("reason") == "Unschedulable"
        for pod in kubectl.pods("smollm2")
        for condition in pod.get("status", {}).get("conditions", ())
    )


def killed(kubectl: Kubectl) -> bool:
    return any(state.get("terminated", {}).get("reason") == "OOMKilled" for state in _states(kubectl))


def at_once(_: Kubectl) -> bool:
    return True


HUB = {"repo": "HuggingFaceTB/SmolLM2-135M-Instruct"}
TROUBLES = {
    "secret": Trouble(
        {"auth": {"apiKeySecretRef": {"name": "nowhere"}}}, at_once, "ConfigValid", "False", "SecretMissing"
    ),
    "token": Trouble(
        {"model": {"huggingFace": {**HUB, "tokenSecretRef": {"name": "nowhere"}}}},
        at_once,
        "ConfigValid",
        "False",
        "SecretMissing",
    ),
    "image": Trouble(
        {"image": {"tag": "no-such-tag"}},
        waiting("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"),
        "Degraded",
        "True",
        "ImagePullError",
    ),
    "revision": Trouble(
        {"model": {"huggingFace": {**HUB, "revision": "no-such-branch"}}},
        ended(10, "download"),
        "ModelCached",
        "False",
        "NotFound",
    ),
    "repository": Trouble(
        {"model": {"huggingFace": {"repo": "nobody/nothing"}}},
        ended(11, "download"),
        "ModelCached",
        "False",
        "AuthFailed",
    ),
    "ranks": Trouble({"parallelism": {"tensor": 2}}, ended(2), "ConfigValid", "False", "TensorParallelMismatch"),
    "option": Trouble(
        {"engine": {"device": "cpu", "maxSequenceLength": 100000}},
        ended(2),
        "ConfigValid",
        "False",
        "InvalidEngineOption",
    ),
    "memory": Trouble({"resources": {"limits": {"memory": "400Mi"}}}, killed, "Degraded", "True", "OOMKilled"),
    "crash": Trouble(
        {"env": [{"name": "PYTHONHOME", "value": "/nowhere"}], "model": {"pvc": {"claimName": "empty"}}},
        waiting("CrashLoopBackOff"),
        "Degraded",
        "True",
        "CrashLoopBackOff",
    ),
    "empty": Trouble({"model": {"pvc": {"claimName": "empty"}}}, ended(2), "ConfigValid", "False", "InvalidModel"),
    "gpu": Trouble(
        {"resources": {"limits": {"nvidia.com/gpu": 99}}}, unscheduled, "Schedulable", "False", "InsufficientGPU"
    ),
    "selector": Trouble(
        {"scheduling": {"nodeSelector": {"no": "such"}}},
        unscheduled,
        "Schedulable",
        "False",
        "NodeSelectorMismatch",
    ),
    "huge": Trouble(
        {"resources": {"requests": {"memory": "900Ti"}}}, unscheduled, "Schedulable", "False", "InsufficientMemory"
    ),
    "claim": Trouble({"model": {"pvc": {"claimName": "nowhere"}}}, at_once, "ModelCached", "False", "PVCPending"),
    "class": Trouble(
        {"cache": {"size": "1Gi", "storageClassName": "nowhere"}}, at_once, "ModelCached", "False", "PVCPending"
    ),
    "deadline": Trouble(
        {"scheduling": {"nodeSelector": {"no": "such"}}, "rollout": {"progressDeadlineSeconds": 10}},
        lambda kubectl: "ProgressDeadlineExceeded" in kubectl("get", "deployments", "-o", "yaml"),
        "Progressing",
        "False",
        "DeadlineExceeded",
    ),
    "evicted": Trouble(
        {"resources": {"limits": {"ephemeral-storage": "20Mi"}}},
        lambda kubectl: any(pod["status"].get("reason") == "Evicted" for pod in kubectl.pods("smollm2")),
        "Degraded",
        "True",
        "Evicted",
    ),
    "later": Trouble({"tls": {"secretName": "cert"}}, at_once, "ConfigValid", "False", "NotSupported"),
    "refused": Trouble(
        {"scheduling": {"tolerations": [{"operator": "Maybe"}]}}, at_once, "ConfigValid", "False", "Refused"
    ),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_trouble_shows_as_a_condition(case: str, kubectl: Kubectl, example: Document) -> None:
    trouble = TROUBLES[case]
    if "empty" in str(trouble.spec):
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "empty"}, "spec": claim}
        )
    for name, value in trouble.spec.items():
        example["spec"][name] = value
    kubectl.apply(example)
    until(
        lambda: trouble.cause(kubectl), f"cause of {trouble.reason}", CAUSE_SECONDS, lambda: kubectl("get", "pods")
    )
    started = time.monotonic()
    found = kubectl.wait("smollm2", trouble.kind, trouble.status, trouble.reason, seconds=REASON_SECONDS)
    print(f"{trouble.reason} after {time.monotonic() - started:.1f} s: {found['message']}")
    assert found["message"]
    assert kubectl.condition("smollm2", "Ready")["status"] == "False"
    events = kubectl("get", "events", "--field-selector", "involvedObject.kind=MiniSGLangService")
    assert trouble.reason in events


def test_a_taint_shows_and_goes(kubectl: Kubectl, example: Document) -> None:
    nodes = [node["metadata"]["name"] for node in kubectl.items("nodes")]
    try:
        kubectl("taint", "nodes", *nodes, "minisgl-e2e=1:NoSchedule", "--overwrite")
        kubectl.apply(example)
        until(lambda: unscheduled(kubectl), "unscheduled pod", CAUSE_SECONDS)
        kubectl.wait("smollm2", "Schedulable", "False", "UntoleratedTaint", seconds=REASON_SECONDS)
    finally:
        kubectl("taint", "nodes", *nodes, "minisgl-e2e-", check=False)
    kubectl.wait("smollm2", "Schedulable", "True", seconds=60)


def test_a_worker_that_dies_shows_and_recovers(kubectl: Kubectl, example: Document) -> None:
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=CAUSE_SECONDS)
    (pod,) = kubectl.pods("smollm2")
    find = "import os,signal;[os.kill(int(p),9) for p in os.listdir('/proc') if p.isdigit() and "
    find += "b'scheduler.process' in open(f'/proc/{p}/cmdline','rb').read()]"
    # The container may be gone before the command has ended.
    kubectl("exec", pod["metadata"]["name"], "-c", "worker", "--", "python", "-c", find, check=False)
    until(lambda: ended(1)(kubectl), "dead worker", 15, lambda: kubectl("get", "pods", "-o", "yaml"))
    kubectl.wait("smollm2", "Degraded", "True", "EngineDied", seconds=REASON_SECONDS)
    kubectl.wait("smollm2", "Ready", "True", seconds=CAUSE_SECONDS)
    assert kubectl.condition("smollm2", "Degraded")["status"] == "False"
