"""How pods of a new revision take the old ones' places, and how far that is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from minisgl_operator import api
from minisgl_operator.observe.observed import Observed
from minisgl_operator.observe.scheduling import INSUFFICIENT_GPU

FALLBACK_ANNOTATION = f"{api.GROUP}/in-place-fallback"
"""On the Deployment: the revision whose new pod found no GPU, so that the old pod has to go first."""

Strategy = Literal["Surge", "InPlace", "Recreate"]


@dataclass(frozen=True)
class Rollout:
    strategy: Strategy
    fallback: bool
    """Auto gave up surging for this revision: to be remembered in `FALLBACK_ANNOTATION`."""
    reason: str
    message: str
    in_progress: bool
    requeue_after: float | None
    """Seconds until time alone changes the decision."""


@dataclass(frozen=True)
class _Surge:
    """A new pod that waits for a GPU while an old one holds its own."""

    pod: str
    since: datetime
    autoscaled: bool


def decide(observed: Observed) -> Rollout:
    """The strategy for now, and what to say of the rollout."""
    surge = _surge(observed)
    fallback = _remembered(observed)
    requeue_after = None
    if not fallback and surge is not None and not surge.autoscaled and _may_fall_back(observed):
        deadline = surge.since + timedelta(seconds=observed.spec.rollout.surge_timeout_seconds)
        fallback = observed.now >= deadline
        requeue_after = None if fallback else (deadline - observed.now).total_seconds()
    strategy = _strategy(observed.spec, fallback=fallback)
    in_progress, reason, message = _progress(observed, strategy, surge, fallback=fallback)
    return Rollout(strategy, fallback, reason, message, in_progress, requeue_after)


def _strategy(spec: api.Spec, *, fallback: bool) -> Strategy:
    if spec.rollout.strategy != "Auto":
        return spec.rollout.strategy
    return "InPlace" if fallback or spec.replicas > 1 else "Surge"


def _surges_alone(spec: api.Spec) -> bool:
    return spec.rollout.strategy == "Auto" and spec.replicas == 1


def _remembered(observed: Observed) -> bool:
    if observed.deployment is None or not _surges_alone(observed.spec):
        return False
    annotations = observed.deployment["metadata"].get("annotations") or {}
    return bool(annotations.get(FALLBACK_ANNOTATION) == observed.revision)


def _may_fall_back(observed: Observed) -> bool:
    """Whether ending an old pod first is allowed, and frees anything."""
    return _surges_alone(observed.spec) and any(state.scheduled for state in observed.old)


def _surge(observed: Observed) -> _Surge | None:
    if not observed.old or observed.wanted == 0:
        return None
    waiting = [
        (state.unschedulable.since, state.name)
        for state in observed.current
        if state.unschedulable is not None and state.unschedulable.reason == INSUFFICIENT_GPU
    ]
    if not waiting:
        return None
    since, pod = min(waiting)
    return _Surge(pod, since, any(name in observed.autoscaler_acted for _, name in waiting))


def _progress(
    observed: Observed, strategy: Strategy, surge: _Surge | None, *, fallback: bool
) -> tuple[bool, str, str]:
    if observed.wanted == 0:
        leaving = observed.live or observed.terminating
        return (
            (True, "Draining", "all pods finish their requests") if leaving else (False, "Complete", "no pod runs")
        )
    if _rolled_out(observed):
        if observed.terminating:
            return True, "Draining", "old pods finish their requests"
        return False, "Complete", f"revision {observed.revision} is rolled out"
    if _deadline_exceeded(observed) and (not fallback or _remembered(observed)):
        seconds = observed.spec.rollout.progress_deadline_seconds
        return False, "DeadlineExceeded", f"revision {observed.revision} made no progress for {seconds} s"
    if fallback:
        return True, "InPlaceFallback", "no GPU is free for a new pod: the old pod ends first"
    if surge is not None and strategy == "Surge":
        return True, "SurgePending", f"pod {surge.pod} waits for a free GPU; {_what_next(observed, surge)}"
    ready = sum(state.ready for state in observed.current)
    return True, "RollingOut", f"revision {observed.revision}: {ready} of {observed.wanted} new pods are ready"


def _what_next(observed: Observed, surge: _Surge) -> str:
    if surge.autoscaled:
        return "the cluster autoscaler is adding a node"
    if _may_fall_back(observed):
        return f"the old pod is ended first after {observed.spec.rollout.surge_timeout_seconds} s"
    return "the old pods go on serving"


def _rolled_out(observed: Observed) -> bool:
    """Whether the wanted pods are those of this revision alone.

    A Deployment that once got there stays so while pods of the same revision die or are added: that is no rollout.
    """
    if observed.deployed_revision != observed.revision or observed.old:
        return False
    if len(observed.current) == observed.wanted and all(state.ready for state in observed.current):
        return True
    return observed.deployment_condition("Progressing").get("reason") == "NewReplicaSetAvailable"


def _deadline_exceeded(observed: Observed) -> bool:
    condition = observed.deployment_condition("Progressing")
    return (
        observed.deployed_revision == observed.revision
        and condition.get("status") == "False"
        and condition.get("reason") == "ProgressDeadlineExceeded"
    )
