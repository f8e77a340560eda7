"""What the watches do not show, read when a decision needs it: Secrets, others' claims, events, a download's log.

Secrets are read by name and never watched: the operator must not be able to list those of a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from minisgl_operator import api, worker_http
from minisgl_operator.build import cache
from minisgl_operator.build.identity import Identity
from minisgl_operator.cluster import CLAIM, SECRET, Cluster, event_time
from minisgl_operator.observe.observed import Missing, Observed, Progress
from minisgl_operator.snapshot import Snapshot

SCALE_UP_SECONDS = 900.0
"""How long a node that an autoscaler adds is waited for."""
MAX_PODS = 4
"""Pods whose events are read in one go; more of them tell the same story."""

Object = dict[str, Any]


@dataclass(frozen=True)
class References:
    """What the spec refers to and the operator does not own."""

    missing: tuple[Missing, ...]
    token_version: str
    """Resource version of the Secret with the model's access token, empty without one."""


class Gatherer:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._scraped: dict[tuple[str, str], dict[str, api.Startup | None]] = {}
        """By service, then by pod: a service's part is only ever touched by the one look at it."""

    def references(self, namespace: str, spec: api.Spec) -> References:
        missing: list[Missing] = []
        token_version = ""
        token = spec.model.hugging_face.token_secret_ref if spec.model.hugging_face else None
        if token:
            secret = self._secret(namespace, token, "spec.model.huggingFace.tokenSecretRef", missing)
            token_version = secret["metadata"]["resourceVersion"] if secret else ""
        if spec.auth:
            self._secret(namespace, spec.auth.api_key_secret_ref, "spec.auth.apiKeySecretRef", missing)
        return References(tuple(missing), token_version)

    def observe(
        self,
        snapshot: Snapshot,
        spec: api.Spec,
        *,
        revision: str,
        job: Object | None,
        references: References,
    ) -> Observed:
        assert snapshot.service is not None
        identity = Identity.of(snapshot.service)
        claim = self.claim(snapshot, spec)
        pods = snapshot.pods_of("worker")
        download_pods = snapshot.pods_of("download")
        scaled, unmounted = self._pod_events(snapshot.namespace, (*pods, *download_pods))
        return Observed(
            service=snapshot.service,
            spec=spec,
            deployment=snapshot.child("Deployment", snapshot.name),
            pods=pods,
            job=job,
            download_pods=download_pods,
            claim=claim,
            needs_claim=cache.claim_name(identity, spec) is not None,
            missing=references.missing,
            autoscaler_acted=scaled,
            mount_failures=unmounted,
            claim_events=self._claim_trouble(snapshot.namespace, claim),
            progress=self._progress(snapshot.namespace, (*download_pods, *pods)),
            startup=self._startup(snapshot, pods, download_pods),
            revision=revision,
            now=datetime.now(UTC),
        )

    def claim(self, snapshot: Snapshot, spec: api.Spec) -> Object | None:
        """The claim that the pods mount, whoever made it."""
        assert snapshot.service is not None
        name = cache.claim_name(Identity.of(snapshot.service), spec)
        if name is None:
            return None
        watched = snapshot.child("PersistentVolumeClaim", name)
        return watched or self._cluster.get(CLAIM, snapshot.namespace, name)

    def forget(self, namespace: str, name: str) -> None:
        """Of a service that is gone."""
        self._scraped.pop((namespace, name), None)

    def _secret(
        self, namespace: str, reference: api.TokenRef | api.ApiKeyRef, field: str, missing: list[Missing]
    ) -> Object | None:
        secret = self._cluster.get(SECRET, namespace, reference.name)
        if secret is None:
            missing.append(Missing("Secret", reference.name, "", field))
        elif reference.key not in (secret.get("data") or {}):
            missing.append(Missing("Secret", reference.name, reference.key, field))
        return secret

    def _pod_events(self, namespace: str, pods: tuple[Object, ...]) -> tuple[frozenset[str], Mapping[str, str]]:
        """The pods that a cluster autoscaler makes room for, and by pod why its volumes cannot be mounted."""
        scaled: set[str] = set()
        unmounted: dict[str, str] = {}
        for pod in [pod for pod in pods if _waits(pod)][:MAX_PODS]:
            name = pod["metadata"]["name"]
            for event in self._cluster.events_of(namespace, "Pod", name):
                if event.get("reason") == "TriggeredScaleUp" and _seconds_since(event) < SCALE_UP_SECONDS:
                    scaled.add(name)
                elif event.get("reason") in ("FailedMount", "FailedAttachVolume"):
                    unmounted[name] = str(event.get("message", ""))
        return frozenset(scaled), unmounted

    def _claim_trouble(self, namespace: str, claim: Object | None) -> str:
        if claim is None or claim.get("status", {}).get("phase") != "Pending":
            return ""
        events = self._cluster.events_of(namespace, "PersistentVolumeClaim", claim["metadata"]["name"])
        # FailedBinding, for a claim that no volume fits, is not called a warning.
        warnings = [
            each for each in events if each.get("type") == "Warning" or each.get("reason") == "FailedBinding"
        ]
        return str(warnings[-1].get("message", "")) if warnings else ""

    def _progress(self, namespace: str, pods: tuple[Object, ...]) -> Progress | None:
        """Of the first download that runs now, from the last line that it printed."""
        for pod in pods:
            status = pod.get("status", {})
            for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                if container["name"] == "download" and "running" in container.get("state", {}):
                    line = self._cluster.log_tail(namespace, pod["metadata"]["name"], "download")
                    progress = parse_progress(line)
                    if progress:
                        return progress
        return None

    def _startup(
        self, snapshot: Snapshot, pods: tuple[Object, ...], download_pods: tuple[Object, ...]
    ) -> api.Startup | None:
        """Of the newest pod that is ready. Each pod is asked once."""
        ready = [pod for pod in pods if _is_ready(pod)]
        if not ready:
            return None
        pod = ready[-1]
        name = pod["metadata"]["name"]
        known = self._scraped.get((snapshot.namespace, snapshot.name), {})
        if name not in known:
            metrics = worker_http.scrape(pod)
            known = {name: None if metrics is None else startup(pod, download_pods, metrics.start_seconds)}
            self._scraped[snapshot.namespace, snapshot.name] = known
        return known[name]


def startup(
    pod: Mapping[str, Any], download_pods: tuple[Object, ...], seconds: Mapping[str, float]
) -> api.Startup:
    """What the start of `pod` took: the download, its own or the Job's, and what its worker measured."""
    downloads = [_download_seconds(candidate) for candidate in (pod, *reversed(download_pods))]
    warmup = seconds.get("warmup")
    return api.Startup(
        pod=pod["metadata"]["name"],
        download_seconds=next((value for value in downloads if value is not None), None),
        load_seconds=round(sum(seconds.values()) - (warmup or 0.0), 1) if seconds else None,
        warmup_seconds=None if warmup is None else round(warmup, 1),
    )


def parse_progress(line: str) -> Progress | None:
    """From a download's output: one JSON object a line."""
    try:
        values = json.loads(line.strip().splitlines()[-1])
        return Progress(int(values["bytes_done"]), int(values["bytes_total"]))
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _download_seconds(pod: Mapping[str, Any]) -> float | None:
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        ended = container.get("state", {}).get("terminated")
        if container["name"] == "download" and ended and ended.get("exitCode") == 0:
            return (_time(ended["finishedAt"]) - _time(ended["startedAt"])).total_seconds()
    return None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _seconds_since(event: Mapping[str, Any]) -> float:
    return (datetime.now(UTC) - _time(event_time(event))).total_seconds()


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _waits(pod: Mapping[str, Any]) -> bool:
    """Whether no container of it has started yet."""
    return pod.get("status", {}).get("phase") == "Pending" and "deletionTimestamp" not in pod["metadata"]
