"""One look after the other at a service, in a cluster in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from minisgl_operator import api, worker_http
from minisgl_operator.build.image import Defaults
from minisgl_operator.reconcile import Reconciler
from minisgl_operator.worker_http import WorkerMetrics
from support.fake_cluster import NAME, NAMESPACE, FakeCluster

DEFAULTS = Defaults("hub.example/worker:1", "hub.example/worker:1-cpu")
CHILDREN = {"ServiceAccount", "Service", "ControllerRevision", "Deployment"}
REVISION = f"{api.GROUP}/revision"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_http, "scrape", lambda pod: None if pod is None else WorkerMetrics())


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.put_service()
    return made


@pytest.fixture
def reconciler(cluster: FakeCluster) -> Reconciler:
    return Reconciler(cluster, DEFAULTS)


def look(reconciler: Reconciler, cluster: FakeCluster) -> float | None:
    return reconciler.reconcile(cluster.snapshot())


def settle(reconciler: Reconciler, cluster: FakeCluster) -> None:
    """Looks until one writes nothing."""
    for _ in range(6):
        cluster.writes.clear()
        look(reconciler, cluster)
        if not cluster.writes:
            return
    raise AssertionError(f"every look writes: {cluster.writes}")


def serve(cluster: FakeCluster, count: int = 1) -> None:
    """The Deployment's pods are there, and ready."""
    deployment = cluster.child("Deployment")
    assert deployment is not None
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    cluster.pods = [_pod(f"qwen3-{number}", labels) for number in range(count)]
    done = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    seen = deployment["metadata"]["generation"]
    cluster.change(
        "Deployment", NAME, status={"observedGeneration": seen, "replicas": count, "conditions": [done]}
    )


def _pod(name: str, labels: dict[str, str], **metadata: Any) -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    worker = {
        "name": "worker",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": at}},
    }
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": at}
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": at, **metadata},
        "spec": {"containers": [{"name": "worker", "image": "i"}], "nodeName": "node"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [condition],
            "containerStatuses": [worker],
        },
    }


def kinds(cluster: FakeCluster) -> set[str]:
    return {kind for kind, _ in cluster.objects} - {api.KIND, "Secret"}


def test_the_first_look_makes_the_children_and_a_settled_service_is_left_alone(
    cluster: FakeCluster, reconciler: Reconciler
) -> None:
    look(reconciler, cluster)
    assert kinds(cluster) == CHILDREN
    assert cluster.condition("Ready")[0] == "False"
    serve(cluster)
    settle(reconciler, cluster)
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.status()["workerImage"] == "hub.example/worker:1"
    assert cluster.status()["readyReplicas"] == 1
    assert look(reconciler, cluster) is None, "nothing is awaited"


def test_a_new_process_applies_once_and_changes_nothing(cluster: FakeCluster, reconciler: Reconciler) -> None:
    look(reconciler, cluster)
    serve(cluster)
    settle(reconciler, cluster)
    before = {key: each["metadata"]["resourceVersion"] for key, each in cluster.objects.items()}
    settle(Reconciler(cluster, DEFAULTS), cluster)
    assert {key: each["metadata"]["resourceVersion"] for key, each in cluster.objects.items()} == before


def test_what_somebody_changes_or_deletes_is_put_back(cluster: FakeCluster, reconciler: Reconciler) -> None:
    look(reconciler, cluster)
    serve(cluster)
    settle(reconciler, cluster)
    deployment = cluster.child("Deployment")
    assert deployment is not None
    cluster.change("Deployment", NAME, spec={**deployment["spec"], "replicas": 9})
    del cluster.objects["Service", NAME]
    look(reconciler, cluster)
    assert kinds(cluster) == CHILDREN
    repaired = cluster.child("Deployment")
    assert repaired is not None and repaired["spec"]["replicas"] == 1


def test_children_that_are_wanted_no_more_go(cluster: FakeCluster, reconciler: Reconciler) -> None:
    cluster.put_service(replicas=2, networkPolicy={"enabled": True})
    look(reconciler, cluster)
    assert kinds(cluster) == CHILDREN | {"PodDisruptionBudget", "NetworkPolicy"}
    cluster.put_service(replicas=1)
    look(reconciler, cluster)
    assert kinds(cluster) == CHILDREN


def test_a_new_operator_keeps_the_template_and_a_changed_engine_keeps_the_image(
    cluster: FakeCluster, reconciler: Reconciler
) -> None:
    look(reconciler, cluster)
    first = cluster.child("Deployment")
    newer = Reconciler(cluster, Defaults("hub.example/worker:2", "hub.example/worker:2-cpu"))
    look(newer, cluster)
    assert cluster.child("Deployment")["spec"] == first["spec"]  # type: ignore[index]
    cluster.put_service(engine={"pageSize": 32})
    look(newer, cluster)
    second = cluster.child("Deployment")
    assert first is not None and second is not None
    assert (
        second["spec"]["template"]["metadata"]["labels"][REVISION]
        != first["spec"]["template"]["metadata"]["labels"][REVISION]
    )
    assert cluster.status()["workerImage"] == "hub.example/worker:1"
    cluster.put_service(engine={"pageSize": 32}, image={"tag": "3"})
    look(newer, cluster)
    assert cluster.status()["workerImage"] == "hub.example/worker:3"
    cluster.put_service(engine={"pageSize": 32, "device": "cpu"})
    look(newer, cluster)
    assert cluster.status()["workerImage"] == "hub.example/worker:2-cpu"
    cluster.put_service()
    look(newer, cluster)
    assert cluster.child("Deployment")["spec"]["template"] == first["spec"]["template"]  # type: ignore[index]


def test_old_revisions_are_kept_while_pods_run_them(cluster: FakeCluster, reconciler: Reconciler) -> None:
    look(reconciler, cluster)
    serve(cluster)
    (first,) = cluster.of_kind("ControllerRevision")
    for size in range(1, 12):
        cluster.put_service(engine={"pageSize": size})
        look(reconciler, cluster)
    kept = cluster.of_kind("ControllerRevision")
    assert len(kept) <= 7 and first in kept
    cluster.pods.clear()
    cluster.put_service(engine={"pageSize": 99})
    look(reconciler, cluster)
    look(reconciler, cluster)
    assert first not in cluster.of_kind("ControllerRevision")


def test_a_spec_that_cannot_be_rolled_out_leaves_what_runs(cluster: FakeCluster, reconciler: Reconciler) -> None:
    look(reconciler, cluster)
    serve(cluster)
    settle(reconciler, cluster)
    before = cluster.child("Deployment")
    cluster.put_service(tls={"secretName": "t"}, engine={"pageSize": 64}, replicas=1)
    look(reconciler, cluster)
    assert cluster.condition("ConfigValid") == ("False", "NotSupported")
    assert cluster.condition("Available")[0] == "True"
    assert cluster.child("Deployment") == before
    cluster.put_service(auth={"apiKeySecretRef": {"name": "key"}})
    assert (look(reconciler, cluster) or 99) < 10, "nobody tells of a Secret"
    assert cluster.condition("ConfigValid") == ("False", "SecretMissing")
    assert cluster.child("Deployment") == before
    cluster.add_secret("key", **{"api-key": "eA=="})
    assert (look(reconciler, cluster) or 99) < 10
    assert cluster.condition("ConfigValid")[0] == "True"
    assert cluster.child("Deployment") != before


def test_a_cache_is_filled_before_any_worker_starts(cluster: FakeCluster, reconciler: Reconciler) -> None:
    cluster.put_service(cache={"size": "10Gi"})
    look(reconciler, cluster)
    assert cluster.child("PersistentVolumeClaim", "qwen3-cache") is not None
    look(reconciler, cluster)
    (job,) = cluster.of_kind("Job")
    assert cluster.child("Deployment") is None
    assert cluster.condition("ModelCached") == ("False", "PVCPending")
    cluster.change("PersistentVolumeClaim", "qwen3-cache", status={"phase": "Bound"})
    look(reconciler, cluster)
    assert cluster.condition("ModelCached") == ("False", "Downloading")
    assert cluster.child("Deployment") is None
    name = job["metadata"]["name"]
    done = {"type": "Complete", "status": "True"}
    cluster.change("Job", name, status={"conditions": [done]})
    look(reconciler, cluster)
    assert cluster.condition("ModelCached") == ("True", "Cached")
    assert cluster.child("Deployment") is not None
    claim = cluster.child("PersistentVolumeClaim", "qwen3-cache")
    assert claim is not None and "ownerReferences" not in claim["metadata"]


def test_a_failed_download_is_tried_again_when_its_token_changes(
    cluster: FakeCluster, reconciler: Reconciler
) -> None:
    source = {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hf"}}}
    cluster.add_secret("hf", HF_TOKEN="eA==")
    cluster.put_service(model=source, cache={"size": "10Gi"})
    look(reconciler, cluster)
    look(reconciler, cluster)
    (job,) = cluster.of_kind("Job")
    now = datetime.now(UTC)
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
    cluster.change("Job", job["metadata"]["name"], status={"conditions": [failed]})
    look(reconciler, cluster)
    assert len(cluster.of_kind("Job")) == 1, "the same token: nothing to try yet"
    cluster.add_secret("hf", HF_TOKEN="eQ==")
    look(reconciler, cluster)
    assert cluster.of_kind("Job") == []
    look(reconciler, cluster)
    (again,) = cluster.of_kind("Job")
    assert again["metadata"]["annotations"] != job["metadata"]["annotations"]
    failed["lastTransitionTime"] = (now - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cluster.change("Job", again["metadata"]["name"], status={"conditions": [failed]})
    look(reconciler, cluster)
    assert cluster.of_kind("Job") == [], "time has passed"


def test_a_child_that_is_refused_is_a_condition(cluster: FakeCluster, reconciler: Reconciler) -> None:
    cluster.refuses = "Deployment"
    look(reconciler, cluster)
    assert cluster.condition("ConfigValid") == ("False", "Refused")
    assert [event["type"] for event in cluster.emitted if event["reason"] == "Refused"] == ["Normal", "Warning"]
    cluster.refuses = None
    look(reconciler, cluster)
    assert cluster.condition("ConfigValid")[0] == "True"


def test_a_scale_down_names_the_idle_pods(
    cluster: FakeCluster, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put_service(replicas=3)
    look(reconciler, cluster)
    serve(cluster, 3)
    settle(reconciler, cluster)
    running = {"qwen3-0": 5.0, "qwen3-1": 0.0, "qwen3-2": 2.0}
    monkeypatch.setattr(
        worker_http, "scrape", lambda pod: WorkerMetrics(running_requests=running[pod["metadata"]["name"]])
    )
    cluster.put_service(replicas=1)
    look(reconciler, cluster)
    costs = {name: each["controller.kubernetes.io/pod-deletion-cost"] for name, each in cluster.annotated.items()}
    assert costs == {"qwen3-0": "5", "qwen3-2": "2"}, "an absent one counts as 0"


def test_a_spec_of_another_version_is_a_condition(cluster: FakeCluster, reconciler: Reconciler) -> None:
    cluster.put_service(fromTheFuture=True)
    look(reconciler, cluster)
    assert cluster.condition("ConfigValid") == ("False", "InvalidSpec")
    assert kinds(cluster) == set()
    cluster.writes.clear()
    look(reconciler, cluster)
    assert cluster.writes == []
    cluster.put_service()
    look(reconciler, cluster)
    assert kinds(cluster) == CHILDREN


def test_a_service_that_is_gone_or_going_is_left_alone(cluster: FakeCluster, reconciler: Reconciler) -> None:
    service = cluster.objects[api.KIND, NAME]
    service["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert look(reconciler, cluster) is None
    del cluster.objects[api.KIND, NAME]
    assert look(reconciler, cluster) is None
    assert cluster.writes == []


def test_progress_of_a_download_shows(cluster: FakeCluster, reconciler: Reconciler) -> None:
    look(reconciler, cluster)
    deployment = cluster.child("Deployment")
    assert deployment is not None
    pod = _pod("qwen3-0", deployment["spec"]["template"]["metadata"]["labels"])
    running = {"name": "download", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "restartCount": 0}
    pod["spec"]["initContainers"] = [{"name": "download", "image": "i"}]
    pod["status"] = {"phase": "Pending", "initContainerStatuses": [running], "conditions": []}
    cluster.pods = [pod]
    cluster.logs = '{"bytes_done": 5, "bytes_total": 20}\n'
    again = look(reconciler, cluster)
    assert again is not None and again < 10
    assert cluster.status()["cache"] == {"phase": "Downloading", "bytesDone": 5, "bytesTotal": 20}
    cluster.logs = "no JSON\n"
    look(reconciler, cluster)
    assert cluster.condition("ModelCached") == ("False", "Downloading")
