"""The API server: the only module that talks to it, apart from kopf's watches.

Objects are plain dicts, as the API server gives them. Writes of children are server-side apply with one field
manager, so that what the operator no longer says is reset, and what others own is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from minisgl_operator import api

FIELD_MANAGER = "minisgl-operator"
TIMEOUT_SECONDS = 20
"""For one call, so that a connection that went silent does not hold a reconcile for ever."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One of the kinds that the operator handles; `plural` is its name in paths."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        root = "/apis/" if "/" in self.api_version else "/api/"
        parts = [root + self.api_version, "namespaces", namespace, self.plural, name, subresource]
        return "/".join(part for part in parts if part)


SERVICE_RESOURCE = Kind(api.API_VERSION, api.KIND, api.PLURAL)
CHILD_KINDS = (
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("v1", "Service", "services"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("apps/v1", "ControllerRevision", "controllerrevisions"),
    Kind("batch/v1", "Job", "jobs"),
    Kind("apps/v1", "Deployment", "deployments"),
)
"""What the operator creates, in the order in which it does."""
POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
CLAIM = next(kind for kind in CHILD_KINDS if kind.kind == "PersistentVolumeClaim")
KINDS = {kind.kind: kind for kind in (SERVICE_RESOURCE, *CHILD_KINDS, POD, SECRET, EVENT)}


class ClusterError(Exception):
    """A call that the API server refused or did not answer. `status` is HTTP's, 0 without an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_refusal(self) -> bool:
        """Whether the object is at fault, so that the same call cannot succeed later by itself."""
        # Server-side apply answers with a 500 to fields that are not in the schema.
        is_untyped = "failed to create typed patch object" in str(self)
        return (self.status in (400, 403, 413, 422) or is_untyped) and not self.is_about_end

    @property
    def is_about_end(self) -> bool:
        """Whether it was refused since the namespace, or the object, is being deleted."""
        return "being terminated" in str(self) or "being deleted" in str(self)


class Cluster:
    def __init__(self, connection: client.ApiClient) -> None:
        self._connection = connection

    @classmethod
    def connect(cls) -> Self:
        """With the pod's service account, else with KUBECONFIG's current context.

        Raises `ClusterError` when there is neither.
        """
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            try:
                config.load_kube_config(client_configuration=settings)
            except (config.ConfigException, OSError) as error:
                raise ClusterError(0, f"no cluster to connect to: {error}") from None
        return cls(client.ApiClient(settings))

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return self._call("GET", kind.path(namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def version(self) -> str:
        return str(self._call("GET", "/version")["gitVersion"])

    def apply(self, child: Mapping[str, Any]) -> Object:
        """Server-side apply; fields of ours that someone else has changed are taken back."""
        metadata = child["metadata"]
        return self._call(
            "PATCH",
            KINDS[child["kind"]].path(metadata["namespace"], metadata["name"]),
            body=child,
            content_type="application/apply-patch+yaml",
            query=[("fieldManager", FIELD_MANAGER), ("force", "true")],
        )

    def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete that very object, and what it owns in the background; one that is gone is no error."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self._call("DELETE", kind.path(namespace, name), body=body)
        except ClusterError as error:
            if error.status not in (404, 409):
                raise

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Replace the fields named in `status`; those that are None are removed."""
        self._merge(SERVICE_RESOURCE.path(namespace, name, "status"), {"status": status})

    def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        self._merge(POD.path(namespace, name), {"metadata": {"annotations": annotations}})

    def events_of(self, namespace: str, kind: str, name: str) -> list[Object]:
        """Events about one object, oldest first."""
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = self._call("GET", EVENT.path(namespace), query=[("fieldSelector", selector), ("limit", "100")])
        return sorted(found["items"], key=event_time)

    def log_tail(self, namespace: str, pod: str, container: str, lines: int = 1) -> str:
        """The newest lines of a container's log; empty before it has one."""
        query = [("container", container), ("tailLines", str(lines)), ("limitBytes", "4096")]
        try:
            return self._read("GET", POD.path(namespace, pod, "log"), query=query)
        except ClusterError as error:
            if error.status in (400, 404):
                return ""
            raise

    def emit(self, event: Mapping[str, Any]) -> None:
        self._call("POST", EVENT.path(event["metadata"]["namespace"]), body=event)

    def _merge(self, path: str, patch: Mapping[str, Any]) -> None:
        query = [("fieldManager", FIELD_MANAGER)]
        self._call("PATCH", path, body=patch, content_type="application/merge-patch+json", query=query)

    def _call(self, method: str, path: str, **arguments: Any) -> Object:
        answer: Object = json.loads(self._read(method, path, **arguments))
        return answer

    def _read(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        query: list[tuple[str, str]] | None = None,
    ) -> str:
        request = self._connection.param_serialize(
            method,
            path,
            query_params=query or [],
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._connection.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            text: str = response.read().decode()
        except ApiException as error:
            raise ClusterError(error.status or 0, _reason(error.status or 0, error.body)) from None
        except OSError as error:
            raise ClusterError(0, f"{method} {path}: {error}") from None
        except Exception as error:  # the client's HTTP library has a family of its own
            if type(error).__module__.startswith("urllib3"):
                raise ClusterError(0, f"{method} {path}: {error}") from None
            raise
        if not 200 <= response.status <= 299:
            raise ClusterError(response.status, _reason(response.status, text))
        return text


def _reason(status: int, body: str | bytes | None) -> str:
    """What the API server says, in one line."""
    try:
        message = json.loads(body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    return " ".join(str(message).split())


def event_time(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])
