"""From what is there to what should be: which children a service has now, and which it has no more. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minisgl_operator import api
from minisgl_operator.build import cache, deployment, image, network, policy, revision, strategy, template
from minisgl_operator.build.identity import Identity
from minisgl_operator.build.image import Defaults
from minisgl_operator.observe.rollout import FALLBACK_ANNOTATION
from minisgl_operator.snapshot import Snapshot, is_owned_by

IMAGE_CHOICE = f"{api.GROUP}/image-choice"
INPUTS = f"{api.GROUP}/inputs"
KEPT_REVISIONS = 5
STRATEGIES = {"Surge": strategy.surge, "InPlace": strategy.in_place, "Recreate": strategy.recreate}
FAILED_JOB_SECONDS = 300
"""How long the failure of a download stands before it is tried again by itself."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Revision:
    """The pod template that the service should run, and the ControllerRevision that keeps it."""

    name: str
    template: Object
    keeper: Object

    @property
    def image(self) -> str:
        return worker_image_of(self.template)


def choose_revision(snapshot: Snapshot, spec: api.Spec, defaults: Defaults) -> Revision:
    """The kept template where this spec had one before, else a new one.

    A new template takes the image of the one before it, unless the spec says otherwise since: a new operator, with
    another default, changes nothing by itself.
    """
    assert snapshot.service is not None
    identity = Identity.of(snapshot.service)
    name = revision.revision_of(spec)
    kept = kept_revision(snapshot, name)
    if kept is not None:
        return kept
    keepers = sorted(snapshot.children.get("ControllerRevision", ()), key=_number)
    choice = image_choice(spec)
    pinned = None
    if keepers and (keepers[-1]["metadata"].get("annotations") or {}).get(IMAGE_CHOICE) == choice:
        pinned = worker_image_of(revision.template_of(keepers[-1]))
    chosen = image.worker_image(spec, defaults, pinned)
    built = template.pod_template(identity, spec, chosen, pull_policy=image.pull_policy(spec, defaults))
    number = _number(keepers[-1]) + 1 if keepers else 1
    keeper = revision.controller_revision(identity, name, number, built)
    keeper["metadata"].setdefault("annotations", {})[IMAGE_CHOICE] = choice
    return Revision(name, built, keeper)


def kept_revision(snapshot: Snapshot, name: str) -> Revision | None:
    keeper = snapshot.child("ControllerRevision", f"{snapshot.name}-{name}")
    if keeper is None:
        return None
    return Revision(name, revision.template_of(keeper), keeper)


def held_revision(snapshot: Snapshot) -> Revision | None:
    """The one that the Deployment runs, for a spec that cannot be rolled out."""
    live = snapshot.child("Deployment", snapshot.name)
    if live is None:
        return None
    labels = live["spec"]["template"]["metadata"].get("labels") or {}
    return kept_revision(snapshot, labels.get(f"{api.GROUP}/revision", ""))


def image_choice(spec: api.Spec) -> str:
    """What in the spec decides on the image."""
    chosen = spec.image.model_dump(by_alias=True, exclude={"pull_policy"}, exclude_none=True)
    return json.dumps({"device": spec.engine.device, **chosen}, sort_keys=True)


def worker_image_of(pod_template: Mapping[str, Any]) -> str:
    containers = pod_template["spec"]["containers"]
    return str(next(container["image"] for container in containers if container["name"] == "worker"))


def standing_children(identity: Identity, spec: api.Spec, defaults: Defaults) -> list[Object]:
    """Those that do not depend on the state of anything: in the order in which they are applied."""
    children = [
        policy.service_account(identity),
        cache.claim(identity, spec) if cache.needs_cache(spec) else None,
        network.network_policy(identity, spec, defaults),
        network.service(identity, spec),
        policy.disruption_budget(identity, spec),
    ]
    return [child for child in children if child is not None]


def download_job(
    identity: Identity,
    spec: api.Spec,
    worker_image: str,
    defaults: Defaults,
    claim: Object | None,
    token_version: str,
) -> Object | None:
    """The Job that fills the cache, once its claim is there."""
    if not cache.needs_cache(spec) or claim is None:
        return None
    uid = claim["metadata"]["uid"]
    job = cache.download_job(identity, spec, worker_image, uid, pull_policy=image.pull_policy(spec, defaults))
    digest = hashlib.sha256(json.dumps([job, token_version], sort_keys=True).encode()).hexdigest()[:16]
    job["metadata"].setdefault("annotations", {})[INPUTS] = digest
    return job


def is_outdated_failure(job: Object, wanted: Object, age_seconds: float) -> bool:
    """Whether to try a failed download again: what it was given has changed, or time has passed."""
    given = (job["metadata"].get("annotations") or {}).get(INPUTS)
    return has_failed(job) and (
        given != wanted["metadata"]["annotations"][INPUTS] or age_seconds > FAILED_JOB_SECONDS
    )


def has_failed(job: Object) -> bool:
    return _has_condition(job, "Failed")


def is_complete(job: Object | None) -> bool:
    return job is not None and _has_condition(job, "Complete")


def worker_deployment(
    identity: Identity, spec: api.Spec, chosen: Revision, strategy_name: str, *, fallback: bool
) -> Object:
    return deployment.deployment(
        identity,
        spec,
        chosen.template,
        chosen.name,
        strategy=STRATEGIES[strategy_name](),
        replicas=0 if spec.suspend else spec.replicas,
        annotations={FALLBACK_ANNOTATION: chosen.name} if fallback else {},
    )


def obsolete(snapshot: Snapshot, wanted: list[Object], uid: str) -> list[Object]:
    """Children of ours that are wanted no more. ControllerRevisions stay while a pod runs them, and the newest."""
    names = {(child["kind"], child["metadata"]["name"]) for child in wanted}
    found = []
    for kind, children in snapshot.children.items():
        if kind in ("Deployment", "ControllerRevision"):
            continue
        for child in children:
            gone = "deletionTimestamp" in child["metadata"]
            if not gone and is_owned_by(child, uid) and (kind, child["metadata"]["name"]) not in names:
                found.append({**child, "kind": kind})
    running = {
        f"{snapshot.name}-{labels.get(f'{api.GROUP}/revision')}"
        for labels in (pod["metadata"].get("labels") or {} for pod in snapshot.pods)
    }
    keepers = sorted(snapshot.children.get("ControllerRevision", ()), key=_number)
    for keeper in keepers[:-KEPT_REVISIONS]:
        name = keeper["metadata"]["name"]
        if name not in running and ("ControllerRevision", name) not in names and is_owned_by(keeper, uid):
            found.append({**keeper, "kind": "ControllerRevision"})
    return found


def _number(keeper: Mapping[str, Any]) -> int:
    return int(keeper.get("revision") or 0)


def _has_condition(job: Mapping[str, Any], kind: str) -> bool:
    conditions = job.get("status", {}).get("conditions") or ()
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)
