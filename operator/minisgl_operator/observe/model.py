"""Whether the model is where the worker reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minisgl_operator import api
from minisgl_operator.observe.containers import RETRY, Failure
from minisgl_operator.observe.observed import Observed
from minisgl_operator.observe.scheduling import PVC_PENDING

Phase = Literal["Pending", "Downloading", "Failed", "Cached"]


@dataclass(frozen=True)
class ModelState:
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    waits: bool = False
    """It is not there yet, but nothing is known to be wrong: whatever keeps a pod from starting tells more."""


def model_state(observed: Observed) -> ModelState:
    claim = _claim_state(observed)
    if claim is not None:
        return claim
    if observed.spec.model.s3 is not None:
        return ModelState("Unknown", "NotSupported", "spec.model.s3 is not supported by this version")
    if observed.spec.model.hugging_face is None:
        return ModelState("True", "Provided", "the model is mounted as it is")
    return _job_state(observed) if observed.spec.cache is not None else _pods_state(observed)


def cache_status(observed: Observed, state: ModelState) -> api.CacheStatus | None:
    """How far the download is. None for a model that is not downloaded."""
    if observed.spec.model.hugging_face is None:
        return None
    phase = _phase(state)
    if observed.progress is not None:
        return api.CacheStatus(
            phase=phase, bytes_done=observed.progress.bytes_done, bytes_total=observed.progress.bytes_total
        )
    # What a pod printed can be read only while it is there; a new download begins anew.
    previous = (observed.service.get("status") or {}).get("cache") or {}
    if previous.get("phase") == "Cached" and phase != "Cached":
        previous = {}
    return api.CacheStatus(
        phase=phase, bytes_done=previous.get("bytesDone"), bytes_total=previous.get("bytesTotal")
    )


def _phase(state: ModelState) -> Phase:
    if state.status == "True":
        return "Cached"
    if state.status == "Unknown" or state.reason == PVC_PENDING:
        return "Pending"
    return "Downloading" if state.reason == "Downloading" else "Failed"


def _claim_state(observed: Observed) -> ModelState | None:
    """None when the claim has its volume, or none is needed."""
    if not observed.needs_claim:
        return None
    name = _claim_name(observed)
    if observed.claim is None:
        return ModelState("False", PVC_PENDING, f"claim {name} does not exist")
    candidates = (*observed.current, *observed.downloads[:1])
    pending = next((state.failure for state in candidates if _is(state.failure, PVC_PENDING)), None)
    phase = (observed.claim.get("status") or {}).get("phase")
    if phase == "Bound":
        return None if pending is None else ModelState("False", PVC_PENDING, pending.message)
    if phase == "Lost":
        return ModelState("False", PVC_PENDING, f"claim {name} has lost its volume")
    detail = observed.claim_events or (pending.message if pending is not None else "")
    message = f"claim {name} is not bound" + (f": {detail}" if detail else "")
    # A claim may wait until its first pod is placed: then that pod's own trouble is what to tell.
    return ModelState("False", PVC_PENDING, message, waits=not detail)


def _claim_name(observed: Observed) -> str:
    if observed.spec.model.pvc is not None:
        return observed.spec.model.pvc.claim_name
    existing = observed.spec.cache.existing_claim if observed.spec.cache is not None else None
    return existing or f"{observed.service['metadata']['name']}-cache"


def _job_state(observed: Observed) -> ModelState:
    # A worker that has loaded the model has found it: a Job that was cleaned away takes nothing from that.
    if _job_condition(observed, "Complete") is not None or any(state.ready for state in observed.current):
        return _CACHED
    failure = _download_failure(observed)
    if failure is not None:
        return ModelState("False", failure.reason, failure.message)
    failed = _job_condition(observed, "Failed")
    if failed is not None:
        return ModelState("False", "DownloadFailed", failed or "the download Job failed")
    if any(state.download == "running" for state in observed.downloads):
        return ModelState("False", "Downloading", "the model is being downloaded", waits=True)
    return _NOT_STARTED


def _pods_state(observed: Observed) -> ModelState:
    """Without a cache each worker pod downloads the model for itself."""
    pods = observed.current
    for state in pods:
        if state.failure is not None and state.failure.type == "ModelCached":
            return ModelState("False", state.failure.reason, state.failure.message)
    if any(state.download == "running" for state in pods):
        return ModelState("False", "Downloading", "the model is being downloaded", waits=True)
    if any(state.ready or state.download == "done" for state in pods):
        return _CACHED
    return (
        _NOT_STARTED if observed.wanted else ModelState("Unknown", "NoPod", "each pod downloads the model itself")
    )


_CACHED = ModelState("True", "Cached", "the model is downloaded")
_NOT_STARTED = ModelState("False", "Downloading", "the download has not started yet", waits=True)


def _job_condition(observed: Observed, kind: str) -> str | None:
    """The message of a condition that the Job has; None without it."""
    for condition in ((observed.job or {}).get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            return str(condition.get("message") or "")
    return None


def _download_failure(observed: Observed) -> Failure | None:
    """The newest attempt's failure, or the one before it while the newest may still fail the same way."""
    for state in observed.downloads:
        if state.failure is not None:
            return state.failure if state.failure.type == "ModelCached" else None
        if state.download == "done" or (state.download == "running" and observed.now - state.created > RETRY):
            return None
    return None


def _is(failure: Failure | None, reason: str) -> bool:
    return failure is not None and failure.reason == reason
