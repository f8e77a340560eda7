"""The Deployment of the workers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from minisgl_operator import api
from minisgl_operator.build.identity import REVISION_LABEL, Identity, Object, metadata, selector

HISTORY = 3
"""Old ReplicaSets that stay, for `kubectl rollout history`. ControllerRevisions keep the templates themselves."""


def deployment(
    identity: Identity,
    spec: api.Spec,
    template: Mapping[str, Any],
    revision: str,
    *,
    strategy: Mapping[str, Any],
    replicas: int,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """`template` is the one of `revision`, as built or as it was kept."""
    pods = deepcopy(dict(template))
    pods["metadata"]["labels"][REVISION_LABEL] = revision
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(identity, annotations=annotations),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(identity)},
            "strategy": deepcopy(dict(strategy)),
            "minReadySeconds": spec.rollout.min_ready_seconds,
            "progressDeadlineSeconds": spec.rollout.progress_deadline_seconds,
            "revisionHistoryLimit": HISTORY,
            "template": pods,
        },
    }
