"""The operator's rights, as its chart gives them: the tests run with these and no more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from support.envtest import ControlPlane
from support.helm import NAMESPACE, render

ACCOUNT = "operator"


def operator_kubeconfig(
    plane: ControlPlane, admin: client.ApiClient, *, watch_namespaces: tuple[str, ...] = ()
) -> Path:
    """The kubeconfig of a service account that has what a release of the chart would have."""
    core, rbac = client.CoreV1Api(admin), client.RbacAuthorizationV1Api(admin)
    release = "-".join(["op", *watch_namespaces])
    values: dict[str, Any] = {"watchNamespaces": list(watch_namespaces), "crds": {"install": False}}
    _made(lambda: core.create_namespace({"metadata": {"name": NAMESPACE}}))
    account = ""
    for document in render(values, release=release):
        kind, metadata = document["kind"], document["metadata"]
        if "helm.sh/hook" in (metadata.get("annotations") or {}):
            continue
        namespace = metadata.get("namespace", NAMESPACE)
        if kind == "ServiceAccount":
            account = metadata["name"]
        creators: dict[str, Callable[[], object]] = {
            "ServiceAccount": partial(core.create_namespaced_service_account, NAMESPACE, document),
            "ClusterRole": partial(rbac.create_cluster_role, document),
            "ClusterRoleBinding": partial(rbac.create_cluster_role_binding, document),
            "Role": partial(rbac.create_namespaced_role, namespace, document),
            "RoleBinding": partial(rbac.create_namespaced_role_binding, namespace, document),
        }
        if kind in creators:
            _made(creators[kind])
    request = {"spec": {"expirationSeconds": 7200, "audiences": []}}
    token = core.create_namespaced_service_account_token(account, NAMESPACE, request).status.token
    return plane.write_kubeconfig(release, token)


def _made(create: Callable[[], object]) -> None:
    try:
        create()
    except ApiException as error:
        if error.status != 409:
            raise
