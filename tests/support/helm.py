"""The operator's chart, rendered by Helm's own engine."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent.parent.parent / "charts" / "minisgl-operator"
RELEASE = "demo"
NAMESPACE = "minisgl-system"
DIGEST = "sha256:" + "0123456789abcdef" * 4
MONITORING = {name: {"enabled": True} for name in ("podMonitor", "dashboard", "alerts")}
"""Values that switch on what is off by default."""

Values = Mapping[str, Any]
Document = dict[str, Any]

MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"]},
    "numeric-namespace": {"watchNamespaces": ["123", "1e3"]},
    "digests": {"images": {name: {"digest": DIGEST} for name in ("operator", "worker", "cpuWorker")}},
    "no-crds": {"crds": {"install": False}},
    "monitoring": {"monitoring": MONITORING},
    "monitoring-namespaced": {"monitoring": MONITORING, "watchNamespaces": ["team-a"]},
    "own-account": {"serviceAccount": {"create": False, "name": "mine"}},
    "account-annotated": {"serviceAccount": {"name": "named", "annotations": {"example.com/role": "x"}}},
    "names": {"fullnameOverride": "msgl", "nameOverride": "op"},
    "pod": {
        "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi", "cpu": "2"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"example.com/number": "1"},
        "imagePullSecrets": [{"name": "registry"}],
        "images": {"workerPullPolicy": "Always", "operator": {"pullPolicy": "Never", "tag": "dev"}},
        "log": {"level": "debug", "format": "json"},
    },
}
"""Values by the name of what they try."""


class _StrictLoader(yaml.CSafeLoader):
    """YAML in which a key that is given twice is an error, as it is to the API server."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def render(values: Values, *, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Document]:
    """Every object of a release, its tests included. HelmValuesError: the schema refuses the values."""
    return [
        document
        for path, text in _files(values, release, namespace).items()
        if not path.endswith("NOTES.txt")
        for document in yaml.load_all(text, _StrictLoader)
        if document is not None
    ]


def notes(values: Values, *, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
    """What `helm install` prints."""
    (text,) = (text for path, text in _files(values, release, namespace).items() if path.endswith("NOTES.txt"))
    return text


def lint(values: Values) -> list[str]:
    """What `helm lint --strict` calls an error."""
    report = helm_python.lint(CHART, dict(values), strict=True)
    errors: list[str] = report["errors"]
    return errors


def metadata() -> dict[str, Any]:
    """Chart.yaml."""
    with helm_python.Chart.load(CHART) as chart:
        return dict(chart.metadata)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def is_hook(document: Document) -> bool:
    return "helm.sh/hook" in document["metadata"].get("annotations", {})


def one(documents: list[Document], kind: str) -> Document:
    """The only object of a kind that is no part of the release's tests."""
    (document,) = (document for document in of_kind(documents, kind) if not is_hook(document))
    return document


def granted(role: Document) -> set[tuple[str, str]]:
    """The rights of a role, as pairs of group/resource and verb."""
    for rule in role["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
    return {
        (f"{group}/{resource}", verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def assert_bound(binding: Document, role: Document, account: str) -> None:
    assert binding["metadata"].get("namespace") == role["metadata"].get("namespace")
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": role["kind"],
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]


def _files(values: Values, release: str, namespace: str) -> dict[str, str]:
    with helm_python.Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(dict(values), name=release, namespace=namespace, is_install=True)
        return rendered
