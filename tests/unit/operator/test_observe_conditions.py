"""The conditions: which one tells what, and what Ready says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from minisgl_operator import api
from minisgl_operator.observe.conditions import EXPECTED, conditions
from minisgl_operator.observe.observed import Missing, Observed
from minisgl_operator.observe.rollout import decide
from minisgl_operator.observe.unsupported import unsupported
from support import cluster_objects as objects
from support.cluster_objects import (
    CACHED,
    HUGGING_FACE,
    NEW,
    OCI,
    OLD,
    Object,
    container,
    observed,
    terminated,
    waiting,
)


def found(seen: Observed) -> dict[str, api.Condition]:
    return {condition.type: condition for condition in conditions(seen, decide(seen))}


def told(seen: Observed, kind: str) -> tuple[str, str]:
    condition = found(seen)[kind]
    return condition.status, condition.reason


def ready(seen: Observed) -> tuple[str, str]:
    return told(seen, "Ready")


def crashed(code: int, log: str = "", *, name: str = "qwen3-1", revision: str = NEW, **more: Any) -> Object:
    return objects.pod(container("worker", terminated(code, log, **more)), name=name, revision=revision)


def two(**more: Any) -> Object:
    return {**OCI, "replicas": 2, **more}


def test_a_service_at_rest() -> None:
    seen = observed(objects.serving())
    assert {kind: (item.status, item.reason) for kind, item in found(seen).items()} == {
        "Ready": ("True", "Serving"),
        "Available": ("True", "Serving"),
        "ModelCached": ("True", "Provided"),
        "Progressing": ("False", "Complete"),
        "Schedulable": ("True", "Scheduled"),
        "Degraded": ("False", "AsExpected"),
        "ConfigValid": ("True", "Valid"),
    }
    assert [item.type for item in conditions(seen, decide(seen))] == list(EXPECTED)
    assert all(item.observed_generation == 4 for item in found(seen).values())


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (observed(objects.starting()), "Starting"),
        (observed(objects.serving(), spec=two()), "Starting"),
        (observed(objects.serving(revision=OLD), deployment=objects.deployment(OLD)), "RollingOut"),
        (observed(objects.serving("new"), objects.serving("old", revision=OLD)), "RollingOut"),
        (observed(objects.serving("new"), objects.draining("old")), "Draining"),
        (observed(objects.serving("a"), objects.serving("b")), "Starting"),
        (observed(spec={**OCI, "suspend": True}), "Suspended"),
        (observed(objects.draining(revision=NEW), spec={**OCI, "replicas": 0}), "ScaledToZero"),
        (observed(objects.unplaced()), "InsufficientGPU"),
        (observed(objects.unplaced(), spec=HUGGING_FACE), "InsufficientGPU"),
        (observed(crashed(1)), "EngineDied"),
        (observed(crashed(2, "minisgl: error: --tp 2: no")), "TensorParallelMismatch"),
        (observed(spec=CACHED, claim=objects.claim(), deployment=None), "Downloading"),
        (observed(spec=CACHED, deployment=None), "PVCPending"),
        (
            observed(objects.starting(), deployment=objects.deployment(progressing="ProgressDeadlineExceeded")),
            "DeadlineExceeded",
        ),
    ],
)
def test_not_ready_and_why(seen: Observed, reason: str) -> None:
    assert ready(seen) == ("False", reason)


def test_what_keeps_the_download_from_starting_tells_more_than_that_it_waits() -> None:
    pod = objects.unplaced(
        "0/1 nodes are available: 1 node(s) had untolerated taint(s).", name="qwen3-download-1", revision=""
    )
    seen = observed(
        spec=CACHED, claim=objects.claim("Pending"), job=objects.job(), download_pods=(pod,), deployment=None
    )
    assert told(seen, "ModelCached") == ("False", "PVCPending")
    assert told(seen, "Schedulable") == ("False", "UntoleratedTaint")
    assert ready(seen) == ("False", "UntoleratedTaint")


def test_the_image_of_the_download_that_cannot_be_pulled() -> None:
    pod = objects.download_pod(waiting("ErrImagePull", "no such image"), phase="Pending")
    seen = observed(spec=CACHED, claim=objects.claim(), job=objects.job(), download_pods=(pod,), deployment=None)
    assert told(seen, "Degraded") == ("True", "ImagePullError")
    assert ready(seen) == ("False", "ImagePullError")
    over = replace(seen, job=objects.job("Complete"))
    assert told(over, "Degraded") == ("False", "AsExpected")


def test_available_is_any_pod_that_takes_requests() -> None:
    seen = observed(objects.serving("old", revision=OLD), crashed(1), deployment=objects.deployment())
    assert told(seen, "Available") == ("True", "Serving")
    assert told(observed(objects.draining()), "Available") == ("False", "NoPodServing")
    assert told(observed(), "Available") == ("False", "NoPodServing")


def test_the_bad_configuration_is_that_of_the_revision_that_is_asked_for() -> None:
    error = "minisgl: error: --tp 2: no"
    assert told(observed(crashed(2, error)), "ConfigValid") == ("False", "TensorParallelMismatch")
    assert found(observed(crashed(2, error)))["ConfigValid"].message == "--tp 2: no"
    mended = observed(crashed(2, error, revision=OLD), objects.starting("new"))
    assert told(mended, "ConfigValid") == ("True", "Valid")


def test_a_missing_secret_is_named_with_its_field() -> None:
    key = Missing("Secret", "hf", "HF_TOKEN", "spec.model.huggingFace.tokenSecretRef")
    seen = observed(objects.serving(), missing=(key,))
    condition = found(seen)["ConfigValid"]
    assert (condition.status, condition.reason) == ("False", "SecretMissing")
    assert condition.message == "spec.model.huggingFace.tokenSecretRef: no key HF_TOKEN in Secret hf"
    assert ready(seen) == ("False", "SecretMissing")
    whole = observed(missing=(replace(key, key=""),))
    message = "spec.model.huggingFace.tokenSecretRef: Secret hf does not exist"
    assert found(whole)["ConfigValid"].message == message


LATER: dict[str, Object] = {
    "spec.autoscaling": {"autoscaling": {"maxReplicas": 3}},
    "spec.tls": {"tls": {"secretName": "cert"}},
    "spec.monitoring": {"monitoring": {}},
    "spec.gateway": {"gateway": {}},
    "spec.model.s3": {"model": {"s3": {"uri": "s3://bucket/model"}}},
}


@pytest.mark.parametrize("field", LATER)
def test_a_field_of_a_later_version_is_refused_by_name(field: str) -> None:
    seen = observed(spec={**OCI, **LATER[field]})
    assert unsupported(seen.spec) == [field]
    condition = found(seen)["ConfigValid"]
    assert (condition.status, condition.reason) == ("False", "NotSupported")
    assert field in condition.message


def test_nothing_of_a_plain_spec_is_refused() -> None:
    assert unsupported(observed().spec) == []


def test_an_evicted_pod_is_told_of_until_another_takes_its_place() -> None:
    survivor = objects.serving("survivor", age=300)
    gone = objects.evicted(age=300)
    assert told(observed(survivor, gone, spec=two()), "Degraded") == ("True", "Evicted")
    assert told(observed(survivor, gone, objects.starting("next"), spec=two()), "Degraded") == ("True", "Evicted")
    replaced = observed(survivor, gone, objects.serving("next", age=100), spec=two())
    assert told(replaced, "Degraded") == ("False", "AsExpected")
    assert ready(replaced) == ("True", "Serving")


def test_an_evicted_pod_of_long_ago_says_nothing_of_a_new_revision() -> None:
    seen = observed(objects.evicted(revision=OLD), objects.starting("new"))
    assert told(seen, "Degraded") == ("False", "AsExpected")


def test_an_evicted_pod_that_was_replaced_says_nothing_of_the_next_loss() -> None:
    seen = observed(objects.evicted(age=900), objects.serving("next", age=600), spec=two())
    assert told(seen, "Degraded") == ("False", "AsExpected")


def test_pods_that_are_refused() -> None:
    messages = []
    for name in ("qwen3-7d4b9-abcde", "qwen3-7d4b9-zyxwv"):
        refusal = f'pods "{name}" is forbidden: exceeded quota: gpus'
        seen = observed(deployment=objects.deployment(progressing="ReplicaSetUpdated", failure=refusal))
        assert told(seen, "Degraded") == ("True", "FailedCreate")
        messages.append(found(seen)["Degraded"].message)
    assert messages == ["a pod is forbidden: exceeded quota: gpus"] * 2


def test_of_several_pods_the_one_of_the_new_revision_is_told_of() -> None:
    old = crashed(137, reason="OOMKilled", name="a", revision=OLD)
    seen = observed(old, crashed(1, name="b"), spec=two())
    condition = found(seen)["Degraded"]
    assert condition.reason == "EngineDied"
    assert condition.message == "pod b: worker exited with status 1"
