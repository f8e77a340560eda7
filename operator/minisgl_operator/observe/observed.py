"""What one reconcile saw of a service and its children, as the API server gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from minisgl_operator import api
from minisgl_operator.build.identity import REVISION_LABEL
from minisgl_operator.observe.pods import PodState, pod_state

Object = dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """An object that the spec names at `field` and that is not there, or has no such `key`."""

    kind: str
    name: str
    key: str
    """Empty: the object itself is missing."""
    field: str


@dataclass(frozen=True)
class Progress:
    """How far the download is, as it printed it last."""

    bytes_done: int
    bytes_total: int


@dataclass(frozen=True)
class Observed:
    service: Object
    spec: api.Spec
    deployment: Object | None
    pods: tuple[Object, ...]
    """The worker pods of all revisions."""
    job: Object | None
    """The download Job of the current claim."""
    download_pods: tuple[Object, ...]
    claim: Object | None
    """The cache's claim, or the one that the model is on."""
    needs_claim: bool
    missing: tuple[Missing, ...]
    autoscaler_acted: frozenset[str]
    """Names of the pods for which the cluster autoscaler is adding a node."""
    mount_failures: Mapping[str, str]
    """What the kubelet said last of a volume that it could not mount, by the pod's name."""
    claim_events: str
    """The newest warning about the claim."""
    progress: Progress | None
    startup: api.Startup | None
    revision: str
    """The revision that the spec asks for."""
    now: datetime
    refused: str | None = None
    """What the API server said when it refused one of the children."""

    @property
    def wanted(self) -> int:
        """How many pods should serve."""
        return 0 if self.spec.suspend else self.spec.replicas

    @property
    def generation(self) -> int:
        return int(self.service["metadata"].get("generation", 0))

    @cached_property
    def states(self) -> tuple[PodState, ...]:
        """Of every worker pod: the current revision's first, then by age. Of several the first is told of."""
        states = [self._state(pod) for pod in self.pods]
        return tuple(sorted(states, key=lambda s: (s.revision != self.revision, s.created, s.name)))

    @cached_property
    def live(self) -> tuple[PodState, ...]:
        """The worker pods that are not on their way out."""
        return tuple(state for state in self.states if not state.terminating and not state.finished)

    @property
    def current(self) -> tuple[PodState, ...]:
        return tuple(state for state in self.live if state.revision == self.revision)

    @property
    def old(self) -> tuple[PodState, ...]:
        return tuple(state for state in self.live if state.revision != self.revision)

    @property
    def terminating(self) -> tuple[PodState, ...]:
        return tuple(state for state in self.states if state.terminating and not state.finished)

    @cached_property
    def downloads(self) -> tuple[PodState, ...]:
        """Of every pod of the download Job, the newest first."""
        states = [self._state(pod) for pod in self.download_pods]
        return tuple(sorted(states, key=lambda state: (state.created, state.name), reverse=True))

    @property
    def deployed_revision(self) -> str | None:
        """The revision of the pod template that the live Deployment holds."""
        if self.deployment is None:
            return None
        metadata = self.deployment.get("spec", {}).get("template", {}).get("metadata", {})
        revision = (metadata.get("labels") or {}).get(REVISION_LABEL)
        return None if revision is None else str(revision)

    def deployment_condition(self, kind: str) -> Object:
        """Empty while the controller has not looked at the Deployment as it is now."""
        deployment = self.deployment or {}
        status = deployment.get("status") or {}
        if status.get("observedGeneration", 0) < deployment.get("metadata", {}).get("generation", 0):
            return {}
        for condition in status.get("conditions") or ():
            if condition["type"] == kind:
                return dict(condition)
        return {}

    def _state(self, pod: Object) -> PodState:
        failure = self.mount_failures.get(pod["metadata"]["name"], "")
        return pod_state(pod, gpu_resource=self.spec.gpu_resource_name, now=self.now, mount_failure=failure)
