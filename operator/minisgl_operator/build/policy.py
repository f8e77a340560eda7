"""What the workers run as, and how many may be away when nodes are drained."""

from __future__ import annotations

from minisgl_operator import api
from minisgl_operator.build.identity import Identity, Object, metadata, selector


def service_account(identity: Identity) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(identity),
        "automountServiceAccountToken": False,
    }


def disruption_budget(identity: Identity, spec: api.Spec) -> Object | None:
    """None for a single replica, which it would only keep on its node for ever."""
    if spec.replicas < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(identity),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(identity)},
            # A pod that does not serve is no reason to keep a node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
