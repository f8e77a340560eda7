"""How clients reach the workers."""

from __future__ import annotations

from copy import deepcopy

from minisgl_operator import api
from minisgl_operator.build.identity import PORT_NAME, Identity, Object, metadata, selector
from minisgl_operator.build.image import Defaults


def service(identity: Identity, spec: api.Spec) -> Object:
    port = {"name": PORT_NAME, "port": spec.service.port, "targetPort": PORT_NAME, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(identity, annotations=spec.service.annotations),
        "spec": {"type": spec.service.type, "selector": selector(identity), "ports": [port]},
    }


def url(identity: Identity, spec: api.Spec) -> str:
    """The base URL of the OpenAI API, within the cluster."""
    port = "" if spec.service.port == 80 else f":{spec.service.port}"
    return f"http://{identity.name}.{identity.namespace}.svc{port}/v1"


def network_policy(identity: Identity, spec: api.Spec, defaults: Defaults) -> Object | None:
    """Who may connect to workers: `allowFrom`, or the pods of the namespace; and the operator, which asks them
    how busy they are."""
    if not spec.network_policy.enabled:
        return None
    peers = deepcopy(spec.network_policy.allow_from) or [{"podSelector": {}}]
    if defaults.operator_namespace is not None:
        operator = {"kubernetes.io/metadata.name": defaults.operator_namespace}
        peers.append({"namespaceSelector": {"matchLabels": operator}})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(identity),
        "spec": {
            "podSelector": {"matchLabels": selector(identity)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers, "ports": [{"port": PORT_NAME, "protocol": "TCP"}]}],
        },
    }
