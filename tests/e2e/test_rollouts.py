"""Rollouts under load, with and without a free GPU, and upgrades of the operator."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.kubectl import Kubectl
from support.waiting import until

pytestmark = pytest.mark.timeout(1800)
READY_SECONDS = 120.0
ROLLOUTS = int(os.environ.get("MINISGL_ROLLOUTS", "20"))
STREAMS_PER_SECOND = "2"
Document = dict[str, Any]
InPod = Callable[..., list[str]]
GPU = "nvidia.com/gpu"


@contextmanager
def load(in_pod: InPod, kubectl: Kubectl) -> Iterator[dict[str, int]]:
    """Streams at a constant rate while entered; then what came of them, by result."""
    url = f"http://smollm2.{kubectl.namespace}.svc/v1/chat/completions"
    command = in_pod("load", url, "smollm2", STREAMS_PER_SECOND)
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    results: dict[str, int] = {}
    try:
        yield results
        output, errors = client.communicate(timeout=180)
        assert client.returncode == 0, errors
        results.update(json.loads(output))
    finally:
        client.kill()


def roll(kubectl: Kubectl, number: int) -> None:
    patch = {"spec": {"engine": {"maxRunningRequests": 8 + number}}}
    kubectl("patch", "msgl", "smollm2", "--type=merge", "-p", json.dumps(patch))
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)


@pytest.mark.parametrize("replicas", [1, 2])
def test_rollouts_lose_no_stream(replicas: int, kubectl: Kubectl, in_pod: InPod, example: Document) -> None:
    """One replica surges; two are replaced one after the other."""
    example["spec"]["replicas"] = replicas
    example["spec"]["resources"]["requests"]["cpu"] = "100m"
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    rollouts = ROLLOUTS if replicas == 1 else max(1, ROLLOUTS // 4)
    with load(in_pod, kubectl) as results:
        for number in range(1, rollouts + 1):
            roll(kubectl, number)
        print(f"{rollouts} rollouts of {replicas} replicas are over")
    print(results)
    assert set(results) == {"ok"}
    assert results["ok"] > rollouts * 5
    events = kubectl("get", "events", "--field-selector", "involvedObject.kind=MiniSGLangService")
    assert "RollingOut" in events
    # Two replicas take turns: the last old pod has ended before the last new one starts.
    assert "Draining" in events or replicas > 1


def test_a_rollout_without_a_free_gpu_falls_back_in_place(kubectl: Kubectl, example: Document) -> None:
    """Every GPU but one is taken by a pod, that one by the service."""
    nodes = kubectl.items("nodes")
    gpus = sum(int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes)
    if gpus < 2:
        pytest.skip(f"needs two {GPU} that a node offers; patching its status makes some")
    example["spec"]["resources"] = {"limits": {GPU: 1, "memory": "3Gi"}, "requests": {"cpu": "100m"}}
    example["spec"]["rollout"] = {"surgeTimeoutSeconds": 10}
    image = os.environ.get("MINISGL_OPERATOR_IMAGE", "localhost/minisgl-operator:dev")
    container: Document = {
        "name": "filler",
        "image": image,
        "command": ["python", "-c", "import time; time.sleep(7200)"],
        "resources": {"limits": {GPU: gpus - 1}},
    }
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler"}, "spec": spec}, example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    patch = {"spec": {"engine": {"maxRunningRequests": 5}}}
    kubectl("patch", "msgl", "smollm2", "--type=merge", "-p", json.dumps(patch))
    started = time.monotonic()
    kubectl.wait("smollm2", "Schedulable", "False", "InsufficientGPU", seconds=10)
    kubectl.wait("smollm2", "Progressing", "True", "InPlaceFallback", seconds=20)
    kubectl.wait("smollm2", "Ready", "True", seconds=10 + 30)
    print(f"in place after {time.monotonic() - started:.0f} s")
    assert time.monotonic() - started < 10 + 30


def test_an_upgrade_of_the_operator_restarts_no_worker(
    kubectl: Kubectl, release: Kubectl, install: Callable[..., None], example: Document
) -> None:
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    before = [pod["metadata"]["uid"] for pod in kubectl.pods("smollm2")]
    deployment = kubectl.get("deployment", "smollm2")
    tag = os.environ.get("MINISGL_OPERATOR_UPGRADE")
    newer = ["--set-string", f"images.operator.tag={tag}"] if tag else []
    install(*newer, "--set-string", "images.cpuWorker.tag=newer", "--set-string", "podAnnotations.upgraded=yes")
    kubectl("patch", "msgl", "smollm2", "--type=merge", "-p", '{"spec":{"rollout":{"surgeTimeoutSeconds":61}}}')
    until(lambda: kubectl.condition("smollm2", "Ready")["fresh"], "look of the new operator", 60)
    time.sleep(5)
    after = kubectl.get("deployment", "smollm2")
    assert deployment is not None and after is not None and after["spec"] == deployment["spec"]
    assert [pod["metadata"]["uid"] for pod in kubectl.pods("smollm2")] == before
    install()
    assert release.items("pods")
