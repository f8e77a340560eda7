"""A service.yaml is applied and answers; deleted, it leaves nothing that should not stay."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import pytest

from support.kubectl import Kubectl
from support.waiting import until

pytestmark = pytest.mark.timeout(600)
READY_SECONDS = 120.0
Ask = Callable[..., tuple[int, str]]
Document = dict[str, Any]


def test_the_example_answers_and_goes(kubectl: Kubectl, ask: Ask, example: Document) -> None:
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    header, line = kubectl("get", "msgl").splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "MODEL", "TP", "REPLICAS", "AGE"]
    assert line.split()[:6] == ["smollm2", "True", "Serving", "smollm2", "1", "1"]
    status, body = ask(f"http://smollm2.{kubectl.namespace}.svc/v1")
    assert status == 200 and "Paris" in body
    service = kubectl.get("msgl", "smollm2")
    assert service is not None
    startup = service["status"]["lastStartup"]
    assert startup["downloadSeconds"] >= 0 and startup["loadSeconds"] > 0

    kubectl("delete", "msgl", "smollm2")
    until(lambda: kubectl.left() == {"pod/client"}, "clean namespace", 90, kubectl.left)


def test_a_cache_is_filled_once_and_kept(kubectl: Kubectl, ask: Ask, example: Document) -> None:
    example["spec"]["cache"] = {"size": "2Gi"}
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    assert len(kubectl.items("jobs")) == 1
    kubectl("delete", "msgl", "smollm2")
    until(lambda: kubectl.left() == {"pod/client", "persistentvolumeclaim/smollm2-cache"}, "kept claim alone", 90)

    # Another service serves what the claim holds.
    path = "HuggingFaceTB/SmolLM2-135M-Instruct/main"
    other = {**example, "metadata": {"name": "other"}}
    del other["spec"]["cache"]
    other["spec"]["model"] = {"pvc": {"claimName": "smollm2-cache", "subPath": path}}
    kubectl.apply(other)
    kubectl.wait("other", "Ready", "True", seconds=READY_SECONDS)
    status, body = ask(f"http://other.{kubectl.namespace}.svc/v1", "other")
    assert status == 200 and "Paris" in body


def test_a_cache_goes_with_its_service_where_it_should(kubectl: Kubectl, example: Document) -> None:
    example["spec"]["cache"] = {"size": "2Gi", "reclaimPolicy": "Delete"}
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    kubectl("delete", "msgl", "smollm2")
    until(lambda: not kubectl.left(), "clean namespace", 90, kubectl.left)


def test_a_key_is_asked_for(kubectl: Kubectl, ask: Ask, example: Document) -> None:
    example["spec"]["auth"] = {"apiKeySecretRef": {"name": "key"}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key"},
        "data": {"api-key": base64.b64encode(b"sesame").decode()},
    }
    kubectl.apply(secret, example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    url = f"http://smollm2.{kubectl.namespace}.svc/v1"
    assert ask(url)[0] == 401
    status, body = ask(url, key="sesame")
    assert status == 200 and "Paris" in body


@pytest.mark.skipif("MINISGL_MODEL_IMAGE" not in os.environ, reason="needs MINISGL_MODEL_IMAGE")
def test_a_model_from_an_image(kubectl: Kubectl, ask: Ask, example: Document) -> None:
    example["spec"]["model"] = {"oci": {"image": os.environ["MINISGL_MODEL_IMAGE"]}}
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    status, body = ask(f"http://smollm2.{kubectl.namespace}.svc/v1")
    assert status == 200 and "Paris" in body


def test_scale_suspend_and_a_hand_edit(kubectl: Kubectl, example: Document) -> None:
    example["spec"]["resources"]["requests"]["cpu"] = "100m"
    kubectl.apply(example)
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    kubectl("scale", "msgl/smollm2", "--replicas=3")
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)
    assert len(kubectl.pods("smollm2")) == 3
    kubectl("scale", "msgl/smollm2", "--replicas=1")
    kubectl.wait("smollm2", "Ready", "True", seconds=READY_SECONDS)

    kubectl("patch", "deployment", "smollm2", "--type=merge", "-p", '{"spec":{"minReadySeconds":77}}')

    def repaired() -> bool:
        found = kubectl.get("deployment", "smollm2")
        return found is not None and not found["spec"].get("minReadySeconds")

    until(repaired, "repair", 20)
    kubectl("patch", "msgl", "smollm2", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kubectl.wait("smollm2", "Ready", "False", "Suspended", seconds=30)
    until(lambda: not kubectl.pods("smollm2"), "suspended service without pods", 60)
