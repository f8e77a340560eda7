"""The conditions of a service: each says one thing, with a reason that goes when its cause goes.

Nothing in them changes by itself, so that a service at rest is never written to: no ages, no counters of attempts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from minisgl_operator import api
from minisgl_operator.observe.model import ModelState, model_state
from minisgl_operator.observe.observed import Missing, Observed
from minisgl_operator.observe.pods import PodState
from minisgl_operator.observe.rollout import Rollout
from minisgl_operator.observe.times import format_time
from minisgl_operator.observe.unsupported import unsupported

ConditionStatus = Literal["True", "False", "Unknown"]

EXPECTED: Mapping[str, ConditionStatus] = {
    "Ready": "True",
    "Available": "True",
    "ModelCached": "True",
    "Progressing": "False",
    "Schedulable": "True",
    "Degraded": "False",
    "ConfigValid": "True",
}
"""Every condition, in the order in which they are written, and its status when there is nothing to tell."""


@dataclass(frozen=True)
class _Finding:
    """A condition without its times."""

    status: ConditionStatus
    reason: str
    message: str = ""


def conditions(observed: Observed, rollout: Rollout) -> list[api.Condition]:
    """All conditions, whole. A condition whose status stays keeps its transition time."""
    model = model_state(observed)
    found = {
        "Available": _available(observed),
        "ModelCached": _Finding(model.status, model.reason, model.message),
        "Progressing": _Finding("True" if rollout.in_progress else "False", rollout.reason, rollout.message),
        "Schedulable": _schedulable(observed),
        "Degraded": _degraded(observed),
        "ConfigValid": _config_valid(observed),
    }
    found["Ready"] = _ready(observed, rollout, found, model)
    previous = {condition.type: condition for condition in previous_conditions(observed)}
    now = format_time(observed.now)
    result = []
    for kind in EXPECTED:
        finding, before = found[kind], previous.get(kind)
        kept = before is not None and before.status == finding.status
        result.append(
            api.Condition(
                type=kind,
                status=finding.status,
                observed_generation=observed.generation,
                last_transition_time=before.last_transition_time if before is not None and kept else now,
                reason=finding.reason,
                message=finding.message,
            )
        )
    return result


def previous_conditions(observed: Observed) -> list[api.Condition]:
    """Those that the service holds now."""
    held = (observed.service.get("status") or {}).get("conditions") or ()
    return [api.Condition.model_validate(condition) for condition in held]


def _ready(observed: Observed, rollout: Rollout, found: Mapping[str, _Finding], model: ModelState) -> _Finding:
    if observed.spec.suspend:
        return _Finding("False", "Suspended", "spec.suspend is set")
    if observed.wanted == 0:
        return _Finding("False", "ScaledToZero", "spec.replicas is 0")
    blocking = [found["ConfigValid"]]
    if not model.waits:
        blocking.append(found["ModelCached"])
    trouble = _first_false(blocking)
    if trouble is not None:
        return trouble
    current = observed.current
    serving = len(current) == observed.wanted and all(state.ready for state in current)
    if serving and rollout.reason == "Complete":
        return _Finding("True", "Serving", f"all {observed.wanted} replicas serve revision {observed.revision}")
    if found["Degraded"].status == "True":
        return _not_ready(found["Degraded"])
    trouble = _first_false([found["Schedulable"], found["ModelCached"]])
    if trouble is not None:
        return trouble
    if rollout.reason != "Complete":
        return _not_ready(found["Progressing"])
    ready = sum(state.ready for state in current)
    return _Finding("False", "Starting", f"{ready} of {observed.wanted} replicas are ready")


def _first_false(findings: Iterable[_Finding]) -> _Finding | None:
    return next((_not_ready(finding) for finding in findings if finding.status == "False"), None)


def _not_ready(finding: _Finding) -> _Finding:
    return _Finding("False", finding.reason, finding.message)


def _available(observed: Observed) -> _Finding:
    if any(state.ready for state in observed.live):
        return _Finding("True", "Serving", "a pod takes requests")
    return _Finding("False", "NoPodServing", "no pod takes requests")


def _schedulable(observed: Observed) -> _Finding:
    for state in (*observed.live, *_running_download(observed)):
        if state.unschedulable is not None:
            return _Finding(
                "False", state.unschedulable.reason, f"pod {state.name}: {state.unschedulable.message}"
            )
    return _Finding("True", "Scheduled", "no pod waits for a node")


def _degraded(observed: Observed) -> _Finding:
    for state in (*observed.live, *_running_download(observed), *_unreplaced(observed)):
        failure = state.failure
        if failure is not None and failure.type == "Degraded":
            return _Finding("True", failure.reason, f"pod {state.name}: {failure.message}")
    failed = observed.deployment_condition("ReplicaFailure")
    if failed.get("status") == "True":
        # The API server names the pod that it refused, which has another name at each attempt.
        message = _without_pod_name(failed.get("message", ""))
        return _Finding("True", failed.get("reason") or "FailedCreate", message)
    return _Finding("False", "AsExpected")


def _running_download(observed: Observed) -> tuple[PodState, ...]:
    """The newest pod of a download that is not over."""
    conditions_of_job = ((observed.job or {}).get("status") or {}).get("conditions") or ()
    over = any(item["type"] == "Complete" and item["status"] == "True" for item in conditions_of_job)
    newest = observed.downloads[:1]
    return () if over or observed.job is None else tuple(state for state in newest if not state.terminating)


def _unreplaced(observed: Observed) -> tuple[PodState, ...]:
    """Pods of this revision that ended, such as evicted ones, as long as a pod is missing in their place.

    They stay as objects until the cluster collects them, which may be never.
    """
    ready = [state for state in observed.current if state.ready]
    if len(ready) >= observed.wanted:
        return ()
    newest = max((state.created for state in ready), default=None)
    return tuple(
        state
        for state in observed.states
        if state.finished
        and not state.terminating
        and state.revision == observed.revision
        and (newest is None or state.created >= newest)
    )


def _without_pod_name(message: str) -> str:
    head, quote, rest = message.partition('pods "')
    _, end, tail = rest.partition('"')
    return f"{head}a pod{tail}" if quote and end else message


def _config_valid(observed: Observed) -> _Finding:
    later = unsupported(observed.spec)
    if later:
        return _Finding("False", "NotSupported", f"not supported by this version, remove: {', '.join(later)}")
    if observed.missing:
        missing = observed.missing[0]
        return _Finding("False", f"{missing.kind}Missing", _missing_message(missing))
    if observed.refused is not None:
        return _Finding("False", "Refused", observed.refused)
    for state in observed.current:
        if state.failure is not None and state.failure.type == "ConfigValid":
            return _Finding("False", state.failure.reason, state.failure.message)
    return _Finding("True", "Valid")


def _missing_message(missing: Missing) -> str:
    if missing.key:
        return f"{missing.field}: no key {missing.key} in {missing.kind} {missing.name}"
    return f"{missing.field}: {missing.kind} {missing.name} does not exist"
