"""Revisions that must not move: an operator of any version finds the pods that are there."""

from __future__ import annotations

from typing import Any

import pytest

from minisgl_operator import api
from minisgl_operator.build.revision import revision_of

Json = dict[str, Any]
HUB = {"huggingFace": {"repo": "Qwen/Qwen3-14B"}}
TOKEN = {"huggingFace": {"repo": "Qwen/Qwen3-14B", "tokenSecretRef": {"name": "hub"}}}


def revision(**fields: Any) -> str:
    return revision_of(api.Spec.model_validate({"model": HUB, **fields}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "277e055132"),
        (
            {
                "cache": {"size": "60Gi"},
                "parallelism": {"tensor": 2},
                "engine": {"maxSequenceLength": 8192, "memoryRatio": 0.8},
                "rollout": {"drainTimeoutSeconds": 600},
                "env": [{"name": "A", "value": "b"}],
            },
            "d9e097fcae",
        ),
    ],
)
def test_a_change_here_would_roll_every_service_at_an_upgrade(fields: Json, expected: str) -> None:
    assert revision(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 3},
        {"suspend": True},
        {"service": {"port": 8080}},
        {"networkPolicy": {"enabled": True}},
        {"rollout": {"strategy": "Recreate", "minReadySeconds": 1, "surgeTimeoutSeconds": 5}},
        {"resources": {}, "image": {}, "env": [], "scheduling": {"nodeSelector": {}}},
    ],
)
def test_what_leaves_pods_as_they_are(fields: Json) -> None:
    assert revision(**fields) == revision()


@pytest.mark.parametrize(
    "fields",
    [
        {"model": TOKEN},
        {"cache": {"size": "1Gi"}},
        {"cache": {"existingClaim": "models"}},
        {"rollout": {"drainTimeoutSeconds": 121}},
        {"probes": {"startupTimeoutSeconds": 60}},
        {"image": {"pullPolicy": "Always"}},
        {"engine": {"extraArgs": ["--log-level", "debug"]}},
    ],
)
def test_what_makes_new_pods(fields: Json) -> None:
    assert revision(**fields) != revision()


def test_of_a_cache_pods_see_the_claim_alone() -> None:
    managed = revision(cache={"size": "1Gi"})
    assert revision(cache={"size": "2Gi", "reclaimPolicy": "Delete"}) == managed
    assert revision(model=TOKEN, cache={"size": "1Gi"}) == managed
    assert revision(cache={"existingClaim": "a"}) != managed
    assert revision(cache={"existingClaim": "a"}) != revision(cache={"existingClaim": "b"})
    assert revision(cache={"existingClaim": "a", "reclaimPolicy": "Delete"}) == revision(
        cache={"existingClaim": "a"}
    )
