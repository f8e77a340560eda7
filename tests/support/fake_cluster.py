"""A cluster in memory: what reconcile writes can be looked at again, and every call is counted.

It answers as the API server does where reconcile cares: an apply gives a uid, a generation, and a new resource
version when something changed. Nothing happens by itself: a test says what controllers and kubelet have done.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from minisgl_operator import api
from minisgl_operator.cluster import CHILD_KINDS, Cluster, ClusterError, Kind
from minisgl_operator.snapshot import Snapshot

Object = dict[str, Any]
NAMESPACE, NAME = "default", "qwen3"


class FakeCluster(Cluster):
    def __init__(self) -> None:  # no connection
        self.objects: dict[tuple[str, str], Object] = {}
        self.pods: list[Object] = []
        self.events: list[Object] = []
        self.emitted: list[Object] = []
        self.annotated: dict[str, Mapping[str, str]] = {}
        self.writes: list[str] = []
        self.refuses: str | None = None
        self.logs = ""
        self._version = 0

    # What a test does.

    def put_service(self, **spec: Any) -> None:
        """Create or replace the service; its generation counts up."""
        model = {"huggingFace": {"repo": "Qwen/Qwen3-0.6B"}}
        old = self.objects.get((api.KIND, NAME))
        generation = old["metadata"]["generation"] + 1 if old else 1
        metadata = {"name": NAME, "namespace": NAMESPACE, "uid": "service-uid", "generation": generation}
        document = {"apiVersion": api.API_VERSION, "kind": api.KIND, "metadata": metadata}
        self.objects[api.KIND, NAME] = {
            **document,
            "spec": {"model": model} | spec,
            "status": (old or {}).get("status", {}),
        }
        self._touch(self.objects[api.KIND, NAME])

    def snapshot(self) -> Snapshot:
        """What the watches show: copies, as of now."""
        service = self.objects.get((api.KIND, NAME))
        children = {
            kind.kind: [copy.deepcopy(each) for (name, _), each in self.objects.items() if name == kind.kind]
            for kind in CHILD_KINDS
        }
        return Snapshot(NAMESPACE, NAME, copy.deepcopy(service), children, copy.deepcopy(self.pods))

    def child(self, kind: str, name: str = NAME) -> Object | None:
        return self.objects.get((kind, name))

    def of_kind(self, kind: str) -> list[Object]:
        return [each for (name, _), each in self.objects.items() if name == kind]

    def change(self, kind: str, name: str, **fields: Any) -> None:
        """What a controller, or a person, does to an object."""
        self.objects[kind, name] |= fields
        self._touch(self.objects[kind, name])

    def add_secret(self, name: str, **data: str) -> None:
        self.objects["Secret", name] = {
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "data": data,
        }
        self._touch(self.objects["Secret", name])

    def status(self) -> Object:
        found: Object = self.objects[api.KIND, NAME]["status"]
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """Its status and reason."""
        (found,) = [each for each in self.status()["conditions"] if each["type"] == kind]
        return found["status"], found["reason"]

    # What reconcile calls.

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        assert namespace == NAMESPACE
        return copy.deepcopy(self.objects.get((kind.kind, name)))

    def apply(self, child: Mapping[str, Any]) -> Object:
        kind, name = child["kind"], child["metadata"]["name"]
        self.writes.append(f"apply {kind}")
        if self.refuses == kind:
            raise ClusterError(422, f"{kind} is invalid: spec.x: Invalid value")
        wanted = copy.deepcopy(dict(child))
        old = self.objects.get((kind, name))
        if old is not None:
            wanted["metadata"] = {**old["metadata"], **wanted["metadata"]}
            wanted["status"] = old.get("status", {})
        else:
            wanted["metadata"]["uid"] = f"uid-{kind}-{name}"
        if old is None or _body(old) != _body(wanted):
            wanted["metadata"]["generation"] = wanted["metadata"].get("generation", 0) + 1
            self._touch(wanted)
        self.objects[kind, name] = wanted
        return copy.deepcopy(wanted)

    def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        assert namespace == NAMESPACE and self.objects[kind.kind, name]["metadata"]["uid"] == uid
        self.writes.append(f"delete {kind.kind}")
        del self.objects[kind.kind, name]

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        assert (namespace, name) == (NAMESPACE, NAME)
        self.writes.append("status")
        service = self.objects[api.KIND, NAME]
        merged = {**service["status"], **copy.deepcopy(dict(status))}
        service["status"] = {field: value for field, value in merged.items() if value is not None}
        self._touch(service)

    def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        assert namespace == NAMESPACE
        self.writes.append("annotate")
        self.annotated[name] = annotations

    def events_of(self, namespace: str, kind: str, name: str) -> list[Object]:
        assert namespace == NAMESPACE
        return [each for each in self.events if each["involvedObject"] == {"kind": kind, "name": name}]

    def log_tail(self, namespace: str, pod: str, container: str, lines: int = 1) -> str:
        assert namespace == NAMESPACE and pod and container == "download" and lines == 1
        return self.logs

    def emit(self, event: Mapping[str, Any]) -> None:
        self.emitted.append(dict(event))

    def _touch(self, stored: Object) -> None:
        self._version += 1
        stored["metadata"]["resourceVersion"] = str(self._version)


def _body(stored: Mapping[str, Any]) -> Object:
    metadata = {name: stored["metadata"].get(name) for name in ("labels", "annotations", "ownerReferences")}
    return {**{name: value for name, value in stored.items() if name != "status"}, "metadata": metadata}
