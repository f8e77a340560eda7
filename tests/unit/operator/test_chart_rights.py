"""What the chart lets the operator do: what it needs, and no more."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from support.helm import MATRIX, RELEASE, assert_bound, granted, is_hook, of_kind, one, render

NAME = f"{RELEASE}-minisgl-operator"
every_value = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())

CHILD = "get list watch create patch delete"
WITHIN_A_NAMESPACE = {
    "serving.minisglang.io/minisglangservices": "get list watch",
    "serving.minisglang.io/minisglangservices/status": "get patch update",
    "serving.minisglang.io/minisglangservices/finalizers": "update",
    "apps/deployments": CHILD,
    "apps/controllerrevisions": CHILD,
    "/services": CHILD,
    "/serviceaccounts": CHILD,
    "/persistentvolumeclaims": CHILD,
    "batch/jobs": CHILD,
    "policy/poddisruptionbudgets": CHILD,
    "networking.k8s.io/networkpolicies": CHILD,
    "/pods": "get list watch patch",
    "/pods/log": "get",
    "/secrets": "get",
    "/events": "get list create",
}
CLUSTER_WIDE = WITHIN_A_NAMESPACE | {
    "apiextensions.k8s.io/customresourcedefinitions": "get list watch",
    "/namespaces": "get list watch",
}


def pairs(rights: dict[str, str]) -> set[tuple[str, str]]:
    return {(resource, verb) for resource, verbs in rights.items() for verb in verbs.split()}


def test_rights_in_the_whole_cluster() -> None:
    documents = [document for document in render({}) if not is_hook(document)]
    assert not of_kind(documents, "Role") + of_kind(documents, "RoleBinding")
    role = one(documents, "ClusterRole")
    assert granted(role) == pairs(CLUSTER_WIDE)
    assert_bound(one(documents, "ClusterRoleBinding"), role, NAME)


def test_rights_in_two_namespaces() -> None:
    documents = render({"watchNamespaces": ["team-a", "team-b"]})
    assert not of_kind(documents, "ClusterRole") + of_kind(documents, "ClusterRoleBinding")
    roles, bindings = (
        [document for document in of_kind(documents, kind) if not is_hook(document)]
        for kind in ("Role", "RoleBinding")
    )
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    for role, binding in zip(roles, bindings, strict=True):
        assert granted(role) == pairs(WITHIN_A_NAMESPACE)
        assert_bound(binding, role, NAME)


@every_value
def test_no_right_is_a_wildcard(values: dict[str, Any]) -> None:
    roles = [document for document in render(values) if document["kind"] in ("Role", "ClusterRole")]
    assert roles
    assert not [right for role in roles for right in granted(role) if "*" in "".join(right)]


def test_account() -> None:
    documents = render({})
    assert one(documents, "ServiceAccount")["automountServiceAccountToken"] is False
    assert one(documents, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == NAME
    own = [document for document in render(MATRIX["own-account"]) if not is_hook(document)]
    assert not of_kind(own, "ServiceAccount")
    assert one(own, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"
    assert_bound(one(own, "ClusterRoleBinding"), one(own, "ClusterRole"), "mine")


def test_an_account_that_is_not_made_needs_a_name() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"serviceAccount\.name is needed"):
        render({"serviceAccount": {"create": False}})
