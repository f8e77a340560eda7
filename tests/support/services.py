"""MiniSGLangServices in a cluster, as a person with kubectl sees and changes them."""

from __future__ import annotations

from typing import Any

from kubernetes import client

from minisgl_operator import api
from support.waiting import until

Object = dict[str, Any]
REASON_SECONDS = 10.0
"""How soon a reason must show."""


class Services:
    def __init__(self, api_client: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self.client = api_client
        self.core, self.apps = client.CoreV1Api(api_client), client.AppsV1Api(api_client)
        self._custom = client.CustomObjectsApi(api_client)

    @property
    def _place(self) -> tuple[str, str, str, str]:
        return api.GROUP, api.VERSION, self.namespace, api.PLURAL

    def create(self, name: str = "qwen3", **spec: Any) -> Object:
        model = {"huggingFace": {"repo": "Qwen/Qwen3-0.6B"}}
        body = {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "metadata": {"name": name},
            "spec": {"model": model} | spec,
        }
        created: Object = self._custom.create_namespaced_custom_object(*self._place, body)
        return created

    def patch(self, name: str = "qwen3", **spec: Any) -> None:
        self._custom.patch_namespaced_custom_object(*self._place, name, {"spec": spec})

    def scale(self, name: str, replicas: int) -> None:
        self._custom.patch_namespaced_custom_object_scale(*self._place, name, {"spec": {"replicas": replicas}})

    def get(self, name: str = "qwen3") -> Object:
        found: Object = self._custom.get_namespaced_custom_object(*self._place, name)
        return found

    def all(self) -> list[Object]:
        found: list[Object] = self._custom.list_namespaced_custom_object(*self._place)["items"]
        return found

    def delete(self, name: str = "qwen3") -> None:
        self._custom.delete_namespaced_custom_object(*self._place, name)

    def status(self, name: str = "qwen3") -> Object:
        found: Object = self.get(name).get("status") or {}
        return found

    def condition(self, kind: str, name: str = "qwen3") -> Object:
        for condition in self.status(name).get("conditions") or ():
            if condition["type"] == kind:
                return dict(condition)
        return {"type": kind, "status": "Unknown", "reason": "", "message": ""}

    def wait(
        self, kind: str, status: str, reason: str | None = None, *, name: str = "qwen3", seconds: float = 30.0
    ) -> Object:
        """The condition, once it has this status (and reason) for the newest generation."""

        def reached() -> Object | None:
            service = self.get(name)
            found = self.condition(kind, name)
            fresh = found.get("observedGeneration") == service["metadata"]["generation"]
            good = found["status"] == status and reason in (None, found["reason"])
            return found if fresh and good else None

        return until(reached, f"{kind}={status} {reason or ''}", seconds, lambda: self.status(name))

    def deployment(self, name: str = "qwen3") -> Object | None:
        try:
            found = self.apps.read_namespaced_deployment(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        plain: Object = self.client.sanitize_for_serialization(found)
        return plain

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of each."""
        found = self.core.list_namespaced_event(self.namespace).items
        return [(event.type, event.reason) for event in found if event.involved_object.kind == api.KIND]
