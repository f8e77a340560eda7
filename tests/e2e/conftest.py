"""End to end: a real cluster by KUBECONFIG, the chart installed by Helm, real images.

    MINISGL_OPERATOR_IMAGE   the operator's image, on the nodes or to be pulled; localhost/minisgl-operator:dev
    MINISGL_WORKER_IMAGE     the worker's image of the target `cpu`; localhost/minisgl-worker-cpu:dev. Its pods
                             must reach the Hugging Face Hub, or a mirror that the image names in HF_ENDPOINT.
    MINISGL_MODEL_IMAGE      an image whose root is the small model, for image volumes; else that test is skipped
    MINISGL_OPERATOR_UPGRADE another tag of the operator's image, for the upgrade; the same tag by default

A chart that is installed already must be uninstalled first: two operators would look after the same services.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kubectl import Kubectl
from support.waiting import until

ROOT = Path(__file__).parent.parent.parent
RELEASE, SYSTEM = "minisgl-e2e", "minisgl-e2e"
OPERATOR_IMAGE = os.environ.get("MINISGL_OPERATOR_IMAGE", "localhost/minisgl-operator:dev")
WORKER_IMAGE = os.environ.get("MINISGL_WORKER_IMAGE", "localhost/minisgl-worker-cpu:dev")
Helm = Callable[..., str]


def image_values(kind: str, image: str) -> list[str]:
    repository, _, tag = image.rpartition(":")
    return ["--set", f"images.{kind}.repository={repository}", "--set-string", f"images.{kind}.tag={tag}"]


@pytest.fixture(scope="session")
def helm() -> Helm:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs KUBECONFIG of a cluster for tests")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} on PATH")

    def run(*arguments: str) -> str:
        command = ["helm", "-n", SYSTEM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def install(helm: Helm) -> Callable[..., None]:
    """Installs or upgrades the chart, and waits for the operator."""

    def run(*values: str) -> None:
        images = [*image_values("operator", OPERATOR_IMAGE), *image_values("worker", WORKER_IMAGE)]
        images += image_values("cpuWorker", WORKER_IMAGE)
        chart = str(ROOT / "charts" / "minisgl-operator")
        helm(
            "upgrade",
            "--install",
            RELEASE,
            chart,
            "--create-namespace",
            "--take-ownership",  # of the CRD, which an earlier release has left
            *images,
            *values,
            "--wait",
            "--timeout",
            "3m",
        )

    return run


@pytest.fixture(scope="session")
def release(helm: Helm, install: Callable[..., None]) -> Iterator[Kubectl]:
    """The system namespace, with the operator at work."""
    install()
    system = Kubectl(SYSTEM)
    yield system
    log = system("logs", f"deployment/{operator_name(system)}", "--tail=-1")
    helm("uninstall", RELEASE)
    system("delete", "namespace", SYSTEM, "--wait=false")
    assert "a defect of the operator" not in log and "Traceback" not in log


def operator_name(system: Kubectl) -> str:
    (found,) = system.items("deployments", f"app.kubernetes.io/instance={RELEASE}")
    return str(found["metadata"]["name"])


@pytest.fixture
def kubectl(release: Kubectl) -> Iterator[Kubectl]:
    """A namespace of the test's own."""
    assert release
    name = f"e2e-{int(time.time() * 1000) % 100_000_000:x}"
    cluster = Kubectl(name)
    cluster("create", "namespace", name)
    yield cluster
    cluster("delete", "msgl", "--all", "--wait=false", check=False)
    cluster("delete", "namespace", name, "--wait=false")


@pytest.fixture
def in_pod(kubectl: Kubectl) -> Callable[..., list[str]]:
    """The command that runs client.py in a pod of the cluster."""
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "client",
                    "image": OPERATOR_IMAGE,
                    "command": ["python", "-c", "import time; time.sleep(7200)"],
                }
            ],
        },
    }
    kubectl.apply(pod)
    until(
        lambda: (kubectl.get("pod", "client") or {}).get("status", {}).get("phase") == "Running", "client pod", 120
    )
    source = (Path(__file__).parent / "client.py").read_text()

    def command(*arguments: str) -> list[str]:
        return [
            "kubectl",
            "-n",
            kubectl.namespace,
            "exec",
            "-i",
            "client",
            "--",
            "python",
            "-c",
            source,
            *arguments,
        ]

    return command


@pytest.fixture
def ask(in_pod: Callable[..., list[str]]) -> Callable[..., tuple[int, str]]:
    """Ask a service from inside the cluster for the capital of France: status and body."""

    def run(url: str, model: str = "smollm2", key: str = "") -> tuple[int, str]:
        command = in_pod("ask", f"{url}/chat/completions", model, key)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        status, _, body = done.stdout.partition(" ")
        return int(status), body

    return run


@pytest.fixture
def example() -> dict[str, Any]:
    """examples/smollm2.yaml."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
    return document
