"""One look at one service: observe, plan, apply, and one status patch.

Level-triggered: nothing is taken from the event that led here, so an event that was missed, or a restart at any
point, loses nothing. Idempotent: a second look writes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from minisgl_operator import api, plan, worker_http
from minisgl_operator.applied import AppliedMemory, Key, key_of
from minisgl_operator.build import cache, network
from minisgl_operator.build.identity import Identity, selector_text
from minisgl_operator.build.image import Defaults
from minisgl_operator.build.revision import revision_of
from minisgl_operator.cluster import KINDS, Cluster, ClusterError
from minisgl_operator.gather import Gatherer, References
from minisgl_operator.observe.observed import Observed
from minisgl_operator.observe.rollout import Rollout, decide
from minisgl_operator.observe.status import status
from minisgl_operator.observe.unsupported import unsupported
from minisgl_operator.report import invalid_status, report
from minisgl_operator.snapshot import Snapshot

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
UNSETTLED_SECONDS = 4.0
"""How soon to look again while something is awaited that no watch shows."""
REFERENCES_SECONDS = 7.0
"""How often the Secrets that a spec refers to are looked at: a missing one must show within 10 seconds."""

Object = dict[str, Any]
log = logging.getLogger(__name__)


class Reconciler:
    """Keeps no state between two looks but memories that save calls."""

    def __init__(self, cluster: Cluster, defaults: Defaults) -> None:
        self._cluster = cluster
        self._defaults = defaults
        self._gatherer = Gatherer(cluster)
        self._applied: dict[tuple[str, str], AppliedMemory] = {}

    def reconcile(self, snapshot: Snapshot) -> float | None:
        """Seconds until the service wants another look by itself, or None.

        Raises `ClusterError` when the API server fails, for another try.
        """
        service = snapshot.service
        if service is None or "deletionTimestamp" in service["metadata"]:
            self._applied.pop((snapshot.namespace, snapshot.name), None)
            self._gatherer.forget(snapshot.namespace, snapshot.name)
            return None
        try:
            spec = api.Spec.model_validate(service["spec"])
        except ValidationError as error:
            report(self._cluster, service, invalid_status(service, error))
            return None

        identity = Identity.of(service)
        references = self._gatherer.references(snapshot.namespace, spec)
        # A spec that cannot be rolled out leaves what runs as it is.
        is_held = bool(references.missing or unsupported(spec))
        chosen = plan.held_revision(snapshot) if is_held else plan.choose_revision(snapshot, spec, self._defaults)
        wanted_revision = revision_of(spec)

        claim = self._gatherer.claim(snapshot, spec)
        wanted_job = None
        if chosen is not None:
            wanted_job = plan.download_job(
                identity, spec, chosen.image, self._defaults, claim, references.token_version
            )
        job = snapshot.child("Job", wanted_job["metadata"]["name"]) if wanted_job else None
        observed = self._gatherer.observe(snapshot, spec, revision=wanted_revision, job=job, references=references)
        rollout = decide(observed)

        children = plan.standing_children(identity, spec, self._defaults)
        if chosen is not None:
            children.append(chosen.keeper)
        if wanted_job is not None and not is_held:
            children.append(job or wanted_job)
        may_start = not cache.needs_cache(spec) or plan.is_complete(job) or observed.deployment is not None
        if chosen is not None and may_start:
            children.append(
                plan.worker_deployment(identity, spec, chosen, rollout.strategy, fallback=rollout.fallback)
            )
        refused = self._apply(snapshot, children)
        if not is_held:
            self._prune(snapshot, children, identity.uid)
        if wanted_job is not None and job is not None and plan.is_outdated_failure(job, wanted_job, _age(job)):
            self._cluster.delete(KINDS["Job"], snapshot.namespace, job["metadata"]["name"], job["metadata"]["uid"])

        if refused is not None:
            observed = dataclasses.replace(observed, refused=refused)
        new = status(
            observed,
            rollout,
            url=network.url(identity, spec),
            selector=selector_text(identity),
            image=chosen.image if chosen else (service.get("status") or {}).get("workerImage"),
        )
        report(self._cluster, service, new)
        return _next_look(observed, rollout, spec, references)

    def _apply(self, snapshot: Snapshot, children: list[Object]) -> str | None:
        """Apply what is not as wanted. Returns what the API server says when it refuses one."""
        memory = self._applied.setdefault((snapshot.namespace, snapshot.name), AppliedMemory())
        for child in children:
            kind, name = child["kind"], child["metadata"]["name"]
            live = snapshot.child(kind, name)
            # What cannot be changed once it is there: kept templates, and what a Job runs.
            if live is not None and kind in ("ControllerRevision", "Job"):
                continue
            if live is not None and kind == "Deployment":
                self._prefer_idle(snapshot, live, child)
            if memory.is_current(child, live):
                continue
            try:
                answer = self._cluster.apply(child)
            except ClusterError as error:
                if not error.is_refusal:
                    raise
                return f"{kind} {name}: {error}"
            memory.remember(child, live, answer)
            if live is None or live["metadata"].get("generation") != answer["metadata"].get("generation"):
                log.info("%s/%s: applied %s %s", snapshot.namespace, snapshot.name, kind, name)
        return None

    def _prefer_idle(self, snapshot: Snapshot, live: Object, wanted: Object) -> None:
        """Before a scale-down, tell the ReplicaSet which pods have the fewest requests to lose."""
        pods = [pod for pod in snapshot.pods_of("worker") if "deletionTimestamp" not in pod["metadata"]]
        if wanted["spec"]["replicas"] == 0 or wanted["spec"]["replicas"] >= min(
            live["spec"].get("replicas", 1), len(pods)
        ):
            return
        for pod in pods:
            metrics = worker_http.scrape(pod)
            cost = int(metrics.running_requests + metrics.queued_requests) if metrics else 0
            known = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
            if known != str(cost):
                self._cluster.annotate_pod(snapshot.namespace, pod["metadata"]["name"], {DELETION_COST: str(cost)})

    def _prune(self, snapshot: Snapshot, children: list[Object], uid: str) -> None:
        memory = self._applied.setdefault((snapshot.namespace, snapshot.name), AppliedMemory())
        forgotten: list[Key] = []
        for child in plan.obsolete(snapshot, children, uid):
            metadata = child["metadata"]
            self._cluster.delete(KINDS[child["kind"]], snapshot.namespace, metadata["name"], metadata["uid"])
            forgotten.append(key_of(child))
            log.info("%s/%s: deleted %s %s", snapshot.namespace, snapshot.name, child["kind"], metadata["name"])
        memory.forget(forgotten)


def _next_look(observed: Observed, rollout: Rollout, spec: api.Spec, references: References) -> float | None:
    looks: list[float] = []
    if rollout.requeue_after is not None:
        looks.append(rollout.requeue_after + 0.1)
    has_references = spec.auth is not None or bool(
        spec.model.hugging_face and spec.model.hugging_face.token_secret_ref
    )
    if references.missing:
        looks.append(UNSETTLED_SECONDS)
    elif has_references:
        looks.append(REFERENCES_SECONDS)
    waits = any(
        pod.get("status", {}).get("phase") == "Pending" for pod in (*observed.pods, *observed.download_pods)
    )
    claim_waits = observed.needs_claim and (observed.claim or {}).get("status", {}).get("phase") != "Bound"
    downloads = observed.progress is not None or (observed.job is not None and not plan.is_complete(observed.job))
    if waits or claim_waits or downloads:
        looks.append(UNSETTLED_SECONDS)
    return min(looks, default=None)


def _age(job: Mapping[str, Any]) -> float:
    """Seconds since the Job failed."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == "Failed":
            ended = datetime.fromisoformat(condition["lastTransitionTime"].replace("Z", "+00:00"))
            return (datetime.now(UTC) - ended).total_seconds()
    return 0.0
