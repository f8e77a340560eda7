"""The volume that keeps a downloaded model, and the Job that fills it."""

from __future__ import annotations

import hashlib
import json

from minisgl_operator import api
from minisgl_operator.build import model, pod
from minisgl_operator.build.identity import (
    DOWNLOAD_CONTAINER,
    Identity,
    Object,
    cache_name,
    download_name,
    metadata,
)

HOPELESS_EXITS = (2, 10, 11)
"""Exit statuses of a download that no other try will mend: wrong usage, not found, not authorised."""
TRIES_AGAIN = 6
"""After 10 s, 20 s, 40 s, ...: about ten minutes of a hub that is not there."""


def needs_cache(spec: api.Spec) -> bool:
    """Whether the model is downloaded once, into a volume, before any worker starts."""
    return spec.model.hugging_face is not None and spec.cache is not None


def managed(spec: api.Spec) -> bool:
    """Whether the volume of the cache is made here."""
    return spec.cache is not None and spec.cache.size is not None


def claim_name(identity: Identity, spec: api.Spec) -> str | None:
    """The claim that holds the model, whoever made it. None: there is none."""
    if spec.model.pvc is not None:
        return spec.model.pvc.claim_name
    if spec.cache is None or not needs_cache(spec):
        return None
    return spec.cache.existing_claim or cache_name(identity)


def claim(identity: Identity, spec: api.Spec) -> Object | None:
    """The claim to make. It outlives the service unless its policy is Delete."""
    cache = spec.cache
    if cache is None or cache.size is None or not needs_cache(spec):
        return None
    asked: Object = {
        "accessModes": [cache.access_mode],
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        asked["storageClassName"] = cache.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(identity, cache_name(identity), owned=cache.reclaim_policy == "Delete"),
        "spec": asked,
    }


def download_job(
    identity: Identity, spec: api.Spec, image: str, claim_uid: str, *, pull_policy: str | None = None
) -> Object:
    """Fills the claim. Its name tells the model and the volume: another of either is another Job.

    The template of a Job cannot change: a Job that is there is not applied again with another spec.
    """
    source, claimed = spec.model.hugging_face, claim_name(identity, spec)
    if source is None or claimed is None:
        raise ValueError("a spec without a cache has no download Job")
    template = pod.template(identity, spec, "download")
    template["spec"] |= {
        # Only then does a Job's failure policy see exit statuses.
        "restartPolicy": "Never",
        "containers": [model.download_container(spec, source, image, pull_policy)],
        "volumes": [model.volume(spec, claimed), *pod.scratch_volumes()],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(identity, download_name(identity, _digest(source, claim_uid))),
        "spec": {
            "backoffLimit": TRIES_AGAIN,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": DOWNLOAD_CONTAINER,
                            "operator": "In",
                            "values": list(HOPELESS_EXITS),
                        },
                    },
                    # Evicted or preempted: not the download's fault, and not one of its tries.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": template,
        },
    }


def _digest(source: api.HuggingFace, claim_uid: str) -> str:
    named = json.dumps([source.repo, source.revision, claim_uid])
    return hashlib.sha256(named.encode()).hexdigest()[:8]
