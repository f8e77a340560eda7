"""The Helm chart, rendered by a real Helm engine over a matrix of values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import minisgl_operator
from minisgl_operator.__main__ import build_parser
from support.helm import (
    CHART,
    DIGEST,
    MATRIX,
    NAMESPACE,
    RELEASE,
    Document,
    lint,
    metadata,
    notes,
    of_kind,
    one,
    render,
)

NAME = f"{RELEASE}-minisgl-operator"
CRD_FILE = CHART.parent.parent / "crds" / "minisglangservices.yaml"

every_value = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


def operator_pod(values: dict[str, Any]) -> Document:
    pod: Document = one(render(values), "Deployment")["spec"]["template"]
    return pod


def arguments(values: dict[str, Any]) -> list[str]:
    args: list[str] = operator_pod(values)["spec"]["containers"][0]["args"]
    return args


# Rendering


@every_value
def test_lints(values: dict[str, Any]) -> None:
    assert lint(values) == []


@every_value
def test_every_document_is_an_object_of_its_own(values: dict[str, Any]) -> None:
    documents = render(values)
    keys = [
        (document["apiVersion"], document["kind"], metadata.get("namespace"), metadata["name"])
        for document in documents
        for metadata in [document["metadata"]]
    ]
    assert len(set(keys)) == len(keys)
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    for _, kind, namespace, name in keys:
        assert isinstance(name, str)
        assert (namespace is None) if kind in cluster_wide else isinstance(namespace, str)


@pytest.mark.parametrize("values", [{}, MATRIX["monitoring"], MATRIX["namespaced"]])
@pytest.mark.parametrize("release", [RELEASE, "123", "true", "x" * 53])
def test_names_and_labels_are_what_kubernetes_allows(release: str, values: dict[str, Any]) -> None:
    for document in render(values, release=release, namespace="42"):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", document["metadata"]["name"])
        for label in document["metadata"].get("labels", {}).values():
            assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label)


def test_version_is_the_operators() -> None:
    assert metadata()["appVersion"] == minisgl_operator.__version__


# The kind


def test_crd_is_the_generated_one_and_outlives_the_release() -> None:
    crd = one(render({}), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load(CRD_FILE.read_text())
    assert (CHART / "files" / CRD_FILE.name).read_text() == CRD_FILE.read_text()


def test_crd_can_be_left_out() -> None:
    assert not of_kind(render({"crds": {"install": False}}), "CustomResourceDefinition")


# The operator's pod


def test_command_line_by_default() -> None:
    version = minisgl_operator.__version__
    assert operator_pod({})["spec"]["containers"][0]["command"] == ["minisgl-operator"]
    assert arguments({}) == [
        "run",
        f"--worker-image=ghcr.io/minisglang/worker:{version}",
        f"--cpu-worker-image=ghcr.io/minisglang/worker:{version}-cpu",
        f"--operator-namespace={NAMESPACE}",
        "--health-port=8080",
        "--metrics-port=8081",
        "--log-level=info",
        "--log-format=text",
    ]


def test_command_line_as_asked_for() -> None:
    args = arguments(MATRIX["pod"] | MATRIX["namespaced"])
    assert args[1:3] == ["--watch-namespace=team-a", "--watch-namespace=team-b"]
    assert {"--worker-pull-policy=Always", "--log-level=debug", "--log-format=json"} <= set(args)


@every_value
def test_the_operator_understands_its_command_line(values: dict[str, Any]) -> None:
    options = build_parser().parse_args(arguments(values))
    assert options.watch_namespace == values.get("watchNamespaces", [])
    assert options.operator_namespace == NAMESPACE
    assert (options.health_port, options.metrics_port) == (8080, 8081)


def test_images_are_the_operators_own_defaults() -> None:
    given, own = (build_parser().parse_args(args) for args in (arguments({}), ["run"]))
    assert (given.worker_image, given.cpu_worker_image) == (own.worker_image, own.cpu_worker_image)


def test_digest_wins_over_tag() -> None:
    images = {name: {"digest": DIGEST, "tag": "dev"} for name in ("operator", "worker", "cpuWorker")}
    (container,) = operator_pod({"images": images})["spec"]["containers"]
    assert container["image"] == f"ghcr.io/minisglang/operator@{DIGEST}"
    assert f"--worker-image=ghcr.io/minisglang/worker@{DIGEST}" in container["args"]
    assert f"--cpu-worker-image=ghcr.io/minisglang/worker@{DIGEST}" in container["args"]


def test_one_operator_at_a_time() -> None:
    spec = one(render({}), "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


@every_value
def test_every_pod_is_restricted(values: dict[str, Any]) -> None:
    documents = render(values)
    pods = [one(documents, "Deployment")["spec"]["template"], *of_kind(documents, "Pod")]
    assert len(pods) == 2
    for pod in pods:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == 65532
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_operator_has_a_writable_tmp() -> None:
    spec = operator_pod({})["spec"]
    assert spec["containers"][0]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert spec["volumes"] == [{"name": "tmp", "emptyDir": {}}]


def test_probes_and_services_find_their_ports() -> None:
    documents = render({})
    (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": 8080, "metrics": 8081}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert {port["targetPort"] for port in one(documents, "Service")["spec"]["ports"]} == set(ports)


@every_value
def test_selectors_match_the_operator_alone(values: dict[str, Any]) -> None:
    documents = render(values)
    deployment = one(documents, "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert one(documents, "Service")["spec"]["selector"] == selector
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    for pod in of_kind(documents, "Pod"):
        assert not selector.items() <= pod["metadata"]["labels"].items()


def test_pod_settings_arrive() -> None:
    values = MATRIX["pod"]
    pod = operator_pod(values)
    (container,) = pod["spec"]["containers"]
    for setting in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
        assert pod["spec"][setting] == values[setting]
    assert pod["metadata"]["annotations"] == values["podAnnotations"]
    assert container["image"] == "ghcr.io/minisglang/operator:dev"
    assert container["imagePullPolicy"] == "Never"
    assert container["resources"]["limits"] == {"memory": "1Gi", "cpu": "2"}
    assert container["resources"]["requests"] == {"cpu": 1, "memory": "128Mi"}


# What is printed


def test_notes_say_what_to_type_next() -> None:
    text = notes({})
    assert "every namespace" in text
    assert "kubectl get msgl -n default" in text
    assert f"helm test {RELEASE} -n {NAMESPACE}" in text
    assert "crds.install" not in text


def test_notes_of_namespaces() -> None:
    text = notes({"watchNamespaces": ["team-a", "team-b"], "crds": {"install": False}})
    assert "team-a, team-b." in text
    assert "kubectl apply -n team-a" in text
    assert "kubectl apply --server-side -f crds/minisglangservices.yaml" in text


def test_service_of_the_notes_is_one_that_the_schema_knows() -> None:
    (body,) = re.findall(r"<<'EOF'\n(.*?)EOF", notes({}), re.S)
    service = yaml.safe_load(body)
    version = one(render({}), "CustomResourceDefinition")["spec"]["versions"][0]
    properties = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert service["kind"] == "MiniSGLangService"
    assert service["spec"].keys() <= properties.keys()
    assert service["spec"]["engine"]["device"] in properties["engine"]["properties"]["device"]["enum"]
