"""The operator's process against a real API server with real controllers, with the rights that the chart gives it.

Nodes are played (support/fake_node.py): pods become what each test says.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from support.envtest import ControlPlane
from support.fake_node import FakeNode
from support.operator_process import IMAGES, OperatorProcess
from support.rights import operator_kubeconfig
from support.services import Services
from support.waiting import until

pytestmark = pytest.mark.timeout(300)
CHILDREN = ("Deployment", "Service", "ServiceAccount", "ControllerRevision")


def writes(plane: ControlPlane) -> float:
    """Calls that change something, to any resource that the operator writes."""
    total = 0.0
    ours = ("deployments", "services", "serviceaccounts", "jobs", "persistentvolumeclaims", "networkpolicies")
    more = ("poddisruptionbudgets", "controllerrevisions", "minisglangservices", "events", "pods")
    for line in plane.get("/metrics", accept="text/plain").splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        is_ours = any(f'resource="{name}"' in line for name in ours + more)
        if is_ours and any(f'verb="{verb}"' in line for verb in ("APPLY", "PATCH", "POST", "PUT", "DELETE")):
            total += float(line.rpartition(" ")[2])
    return total


@pytest.mark.usefixtures("node")
def test_a_service_becomes_ready_and_an_idle_operator_writes_nothing(
    services: Services, controllers: ControlPlane
) -> None:
    services.create(replicas=2)
    services.wait("Ready", "True")
    status = services.status()
    namespace = services.namespace
    assert status["url"] == f"http://qwen3.{namespace}.svc/v1"
    assert status["servedModel"] == "qwen3"
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    assert status["workerImage"] == "example.com/worker:1"
    assert status["observedGeneration"] == services.get()["metadata"]["generation"]
    budget = client.PolicyV1Api(services.client).read_namespaced_pod_disruption_budget("qwen3", namespace)
    assert budget.spec.max_unavailable == 1
    owner = services.deployment()["metadata"]["ownerReferences"][0]  # type: ignore[index]
    assert owner["kind"] == "MiniSGLangService" and owner["controller"]
    assert ("Normal", "Serving") in services.events()

    def quiet() -> bool:
        before = writes(controllers)
        time.sleep(5)
        return writes(controllers) == before

    until(quiet, "five seconds without a write", 60)


@pytest.mark.usefixtures("node")
def test_hand_edits_are_repaired(services: Services) -> None:
    services.create()
    services.wait("Ready", "True")
    edit: dict[str, Any] = {"spec": {"replicas": 5, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
    services.apps.patch_namespaced_deployment("qwen3", services.namespace, edit)
    services.core.delete_namespaced_service("qwen3", services.namespace)

    def repaired() -> bool:
        deployment = services.deployment()
        assert deployment is not None
        template = deployment["spec"]["template"]["spec"]
        names = [item.metadata.name for item in services.core.list_namespaced_service(services.namespace).items]
        grace = template["terminationGracePeriodSeconds"]
        return deployment["spec"]["replicas"] == 1 and grace == 155 and names == ["qwen3"]

    until(repaired, "repair", 20)
    services.wait("Ready", "True")


def test_scaling_by_the_subresource_and_suspending(services: Services, node: FakeNode) -> None:
    services.create()
    services.wait("Ready", "True")
    services.scale("qwen3", 3)
    services.wait("Ready", "True")
    assert services.status()["readyReplicas"] == 3
    services.patch(suspend=True)
    services.wait("Ready", "False", "Suspended")
    until(lambda: not node.pods(), "suspended service without pods", 20)
    services.patch(suspend=False)
    services.wait("Ready", "True")
    services.scale("qwen3", 0)
    services.wait("Ready", "False", "ScaledToZero")


def test_a_new_operator_with_another_default_image_rolls_nothing(
    services: Services, node: FakeNode, kubeconfig: Path
) -> None:
    services.create()
    services.wait("Ready", "True")
    before = [pod["metadata"]["uid"] for pod in node.pods()]
    deployment = services.deployment()
    newer = ("--worker-image", "example.com/worker:2", "--cpu-worker-image", "example.com/worker-cpu:2")
    with OperatorProcess(kubeconfig, newer):
        time.sleep(3)
        services.create("other")
        services.wait("Ready", "True", name="other", seconds=60)
        pods = [
            pod for pod in node.pods() if pod["metadata"]["labels"]["serving.minisglang.io/service"] == "qwen3"
        ]
        assert [pod["metadata"]["uid"] for pod in pods] == before
        assert deployment is not None and services.deployment()["spec"] == deployment["spec"]  # type: ignore[index]


def test_a_rollout_in_place_when_no_gpu_is_free(services: Services, node: FakeNode) -> None:
    node.gpus = 1
    services.create(rollout={"surgeTimeoutSeconds": 3})
    services.wait("Ready", "True")
    services.patch(engine={"maxRunningRequests": 8})
    services.wait("Progressing", "True", "SurgePending")
    services.wait("Schedulable", "False", "InsufficientGPU")
    assert services.condition("Available")["status"] == "True"
    started = time.monotonic()
    services.wait("Ready", "True", seconds=33)
    assert time.monotonic() - started < 33
    reasons = [reason for _, reason in services.events()]
    assert reasons.count("InPlaceFallback") == 1 and "RollingOut" in reasons
    assert len(node.pods()) == 1
    # A second rollout starts with a surge again.
    node.gpus = 2
    services.patch(engine={"maxRunningRequests": 9})
    services.wait("Ready", "True")
    assert services.deployment()["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1  # type: ignore[index]


def test_a_revert_returns_to_the_kept_template(services: Services, node: FakeNode) -> None:
    services.create(engine={"pageSize": 16})
    services.wait("Ready", "True")
    first = services.status()["currentRevision"]
    pod = node.pods()[0]["metadata"]["uid"]
    node.gpus = 1  # the new pod finds no place
    services.patch(engine={"pageSize": 32})
    services.wait("Progressing", "True", "SurgePending")
    services.patch(engine={"pageSize": 16})
    services.wait("Ready", "True")
    assert services.status()["currentRevision"] == first
    assert [found["metadata"]["uid"] for found in node.pods()] == [pod]


def test_deletion_leaves_nothing_but_what_should_stay(services: Services, node: FakeNode) -> None:
    services.create("keeps", cache={"size": "1Gi"}, networkPolicy={"enabled": True}, replicas=2)
    services.create("drops", cache={"size": "1Gi", "reclaimPolicy": "Delete"})
    namespace, core = services.namespace, services.core
    for name in ("keeps", "drops"):
        _provide(core, namespace, f"{name}-cache")
        services.wait("Ready", "True", name=name)
    for name in ("keeps", "drops"):
        services.delete(name)

    def left() -> set[str]:
        found = {f"pod/{pod['metadata']['name']}" for pod in node.pods()}
        lists = {
            "deployment": services.apps.list_namespaced_deployment,
            "replicaset": services.apps.list_namespaced_replica_set,
            "revision": services.apps.list_namespaced_controller_revision,
            "service": core.list_namespaced_service,
            "claim": core.list_namespaced_persistent_volume_claim,
            "account": core.list_namespaced_service_account,
            "job": client.BatchV1Api(services.client).list_namespaced_job,
            "budget": client.PolicyV1Api(services.client).list_namespaced_pod_disruption_budget,
            "policy": client.NetworkingV1Api(services.client).list_namespaced_network_policy,
        }
        for kind, each in lists.items():
            found |= {f"{kind}/{item.metadata.name}" for item in each(namespace).items}
        return found

    until(lambda: left() == {"claim/keeps-cache", "account/default"}, "clean namespace", 60, left)


def _provide(core: client.CoreV1Api, namespace: str, claim: str) -> None:
    """A volume for a claim, as a provisioner makes one."""
    volume = {
        "metadata": {"name": f"{namespace}-{claim}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": claim,
            },
        },
    }
    core.create_persistent_volume(volume)


def test_a_service_that_is_deleted_and_made_again_at_once(services: Services, node: FakeNode) -> None:
    """The children of the first are still there, and on their way out, when the second comes."""
    for cache in ({}, {"cache": {"size": "1Gi"}}):
        if cache:
            _provide(services.core, services.namespace, "again-cache")
        services.create("again", **cache)
        services.wait("Ready", "True", name="again")
        first = {pod["metadata"]["uid"] for pod in node.pods()}
        services.delete("again")
        services.create("again", **cache)
        services.wait("Ready", "True", name="again", seconds=60)
        until(lambda first=first: not first & {pod["metadata"]["uid"] for pod in node.pods()}, "new pods", 60)  # type: ignore[misc]
        services.wait("Ready", "True", name="again", seconds=60)
        uid = services.get("again")["metadata"]["uid"]
        owners = services.deployment("again")["metadata"]["ownerReferences"]  # type: ignore[index]
        assert [owner["uid"] for owner in owners] == [uid]
        services.delete("again")
        until(lambda: not node.pods(), "end of the pods", 60)


def test_a_restart_at_any_point_loses_nothing(
    admin: client.ApiClient, namespace: str, operator: OperatorProcess, kubeconfig: Path, node: FakeNode
) -> None:
    services = Services(admin, namespace)
    operator.kill()
    try:
        for attempt in range(6):
            with OperatorProcess(kubeconfig) as short:
                if attempt == 0:
                    services.create(replicas=2)
                else:
                    services.patch(replicas=1 + attempt % 3, engine={"pageSize": attempt})
                time.sleep(0.05 + 0.4 * attempt)
                short.kill()
        with OperatorProcess(kubeconfig):
            services.wait("Ready", "True", seconds=60)
            assert services.status()["readyReplicas"] == len(node.pods()) == 3
    finally:
        operator.restart()


@pytest.mark.usefixtures("node")
def test_a_hundred_services(services: Services, operator: OperatorProcess) -> None:
    errors = operator.metric('minisgl_operator_reconcile_total{result="error"')
    for number in range(100):
        services.create(f"s{number}", engine={"device": "cpu"})

    def ready() -> int:
        good = 0
        for service in services.all():
            conditions = (service.get("status") or {}).get("conditions") or ()
            good += any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        return good

    until(lambda: ready() == 100, "a hundred ready services", 180, ready)
    assert operator.metric('minisgl_operator_reconcile_total{result="error"') == errors


def test_an_operator_of_one_namespace_has_no_rights_elsewhere(
    admin: client.ApiClient, controllers: ControlPlane, namespace: str, operator: OperatorProcess
) -> None:
    """With the chart's `watchNamespaces`: it serves its own namespace, and asks for nothing beyond."""
    operator.kill()
    try:
        kubeconfig = operator_kubeconfig(controllers, admin, watch_namespaces=(namespace,))
        outside = Services(admin, "default")
        outside.create("outside")
        with (
            FakeNode(admin, namespace),
            OperatorProcess(kubeconfig, (*IMAGES, "--watch-namespace", namespace)) as narrow,
        ):
            inside = Services(admin, namespace)
            inside.create("inside")
            inside.wait("Ready", "True", name="inside")
            assert outside.status("outside") == {}
            assert "forbidden" not in narrow.log().lower()
        outside.delete("outside")
    finally:
        operator.restart()
