"""A real API server for the tests of this folder, one for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from minisgl_operator import api
from minisgl_operator.crd import crd
from support import envtest
from support.envtest import ControlPlane
from support.fake_node import FakeNode
from support.operator_process import OperatorProcess
from support.rights import operator_kubeconfig
from support.services import Services


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """An API server with the CRD and no controllers."""
    if not envtest.available():
        pytest.skip("needs KUBEBUILDER_ASSETS with kube-apiserver and etcd")
    with ControlPlane.start() as plane:
        with plane.api_client() as api_client:
            install_crd(api_client)
        yield plane


@pytest.fixture(scope="session")
def controllers(control_plane: ControlPlane) -> ControlPlane:
    """The same, with every controller: Deployments get their ReplicaSets and pods, what is orphaned is deleted."""
    if not envtest.find("kube-controller-manager"):
        pytest.skip("needs KUBEBUILDER_ASSETS with kube-controller-manager")
    control_plane.start_controllers()
    return control_plane


@pytest.fixture(scope="session")
def admin(control_plane: ControlPlane) -> Iterator[client.ApiClient]:
    """A client that may do everything."""
    with control_plane.api_client() as api_client:
        yield api_client


@pytest.fixture
def namespace(admin: client.ApiClient) -> Iterator[str]:
    """A namespace of the test's own."""
    core = client.CoreV1Api(admin)
    name: str = core.create_namespace({"metadata": {"generateName": "test-"}}).metadata.name
    yield name
    core.delete_namespace(name)


@pytest.fixture(scope="module")
def kubeconfig(controllers: ControlPlane, admin: client.ApiClient) -> Path:
    """With the rights that the chart gives an operator of all namespaces."""
    return operator_kubeconfig(controllers, admin)


@pytest.fixture(scope="module")
def operator(kubeconfig: Path) -> Iterator[OperatorProcess]:
    """The operator's process. It must meet no defect, and ask for nothing that it may not do."""
    with OperatorProcess(kubeconfig) as process:
        yield process
        log = process.log()
        assert "a defect of the operator" not in log and "Traceback" not in log
        assert "forbidden: User" not in log


@pytest.fixture
def services(operator: OperatorProcess, admin: client.ApiClient, namespace: str) -> Services:
    assert operator.is_healthy()
    return Services(admin, namespace)


@pytest.fixture
def node(admin: client.ApiClient, namespace: str) -> Iterator[FakeNode]:
    """Plays the node of the test's namespace."""
    with FakeNode(admin, namespace) as fake:
        yield fake


def install_crd(api_client: client.ApiClient) -> None:
    """Creates the CRD, and waits until its resources are served."""
    extensions, resources = client.ApiextensionsV1Api(api_client), client.CustomObjectsApi(api_client)
    extensions.create_custom_resource_definition(crd())

    def served() -> bool:
        definition: Any = extensions.read_custom_resource_definition(crd()["metadata"]["name"])
        conditions = {each.type: each.status for each in definition.status.conditions or []}
        if conditions.get("NonStructuralSchema") == "True":
            raise AssertionError(definition.status.conditions)
        if conditions.get("Established") != "True":
            return False
        try:
            resources.list_cluster_custom_object(api.GROUP, api.VERSION, api.PLURAL)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    envtest.wait_until("the CRD", served)
