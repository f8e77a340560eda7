"""The rollout decision: which strategy, for how long, and what to say of it."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from minisgl_operator.observe.rollout import Rollout, decide
from support import cluster_objects as objects
from support.cluster_objects import NEW, OCI, OLD, observed

Given = Literal["Auto", "Surge", "InPlace", "Recreate"]


def spec(strategy: Given = "Auto", *, replicas: int = 1, timeout: int = 60, **more: Any) -> dict[str, Any]:
    return {**OCI, "replicas": replicas, "rollout": {"strategy": strategy, "surgeTimeoutSeconds": timeout}, **more}


def surging(
    *, since: float = 20, fallback: str = "", given: dict[str, Any] | None = None, **fields: Any
) -> Rollout:
    """The old pod serves, the new one finds no GPU."""
    deployment = objects.deployment(fallback=fallback, progressing="ReplicaSetUpdated")
    pods = (objects.serving("old", revision=OLD), objects.unplaced(name="new", since=since))
    return decide(observed(*pods, spec=given or spec(), **({"deployment": deployment} | fields)))


@pytest.mark.parametrize(
    ("given", "replicas", "strategy"),
    [
        ("Auto", 1, "Surge"),
        ("Auto", 2, "InPlace"),
        ("Auto", 8, "InPlace"),
        ("Auto", 0, "Surge"),
        ("Surge", 1, "Surge"),
        ("Surge", 3, "Surge"),
        ("InPlace", 1, "InPlace"),
        ("Recreate", 2, "Recreate"),
    ],
)
def test_the_strategy(given: Given, replicas: int, strategy: str) -> None:
    rollout = decide(observed(spec=spec(given, replicas=replicas)))
    assert (rollout.strategy, rollout.fallback) == (strategy, False)


def test_a_surge_waits_for_a_gpu_until_its_deadline() -> None:
    rollout = surging(since=20)
    assert (rollout.strategy, rollout.fallback, rollout.reason) == ("Surge", False, "SurgePending")
    assert rollout.in_progress
    assert rollout.requeue_after == 40


@pytest.mark.parametrize("since", [60, 61, 3600])
def test_past_the_deadline_the_old_pod_goes_first(since: float) -> None:
    rollout = surging(since=since)
    assert (rollout.strategy, rollout.fallback, rollout.reason) == ("InPlace", True, "InPlaceFallback")
    assert rollout.in_progress
    assert rollout.requeue_after is None


def test_without_patience_the_fallback_is_at_once() -> None:
    assert surging(since=0, given=spec(timeout=0)).fallback


def test_the_timer_rests_while_the_autoscaler_adds_a_node() -> None:
    rollout = surging(since=3600, autoscaler_acted=frozenset({"new"}))
    assert (rollout.strategy, rollout.reason, rollout.requeue_after) == ("Surge", "SurgePending", None)
    assert surging(since=3600, autoscaler_acted=frozenset({"another"})).fallback


def test_a_fallback_is_remembered_for_its_revision_alone() -> None:
    in_place = decide(
        observed(
            objects.starting("new"), deployment=objects.deployment(fallback=NEW, progressing="ReplicaSetUpdated")
        )
    )
    assert (in_place.strategy, in_place.fallback, in_place.reason) == ("InPlace", True, "InPlaceFallback")
    assert not surging(since=1, fallback=OLD).fallback
    assert surging(since=1, fallback=OLD).strategy == "Surge"


def test_a_fallback_is_over_when_the_rollout_is() -> None:
    rollout = decide(
        observed(
            objects.serving(), deployment=objects.deployment(fallback=NEW, progressing="NewReplicaSetAvailable")
        )
    )
    assert (rollout.reason, rollout.in_progress) == ("Complete", False)
    assert rollout.fallback, "the strategy does not change once more at the end"


@pytest.mark.parametrize("given", [spec("Surge"), spec("Surge", replicas=2)])
def test_who_asks_for_a_surge_gets_no_fallback(given: dict[str, Any]) -> None:
    rollout = surging(since=3600, given=given)
    assert (rollout.strategy, rollout.fallback, rollout.reason) == ("Surge", False, "SurgePending")
    assert rollout.requeue_after is None


def test_the_first_pod_has_nothing_to_fall_back_on() -> None:
    rollout = decide(
        observed(objects.unplaced(since=3600), deployment=objects.deployment(progressing="NewReplicaSetCreated"))
    )
    assert (rollout.strategy, rollout.fallback, rollout.reason) == ("Surge", False, "RollingOut")
    assert rollout.requeue_after is None


@pytest.mark.parametrize(
    "old",
    [
        objects.unplaced(name="old", revision=OLD, since=7200),
        objects.draining("old"),
        objects.evicted("old", revision=OLD),
    ],
)
def test_an_old_pod_without_a_gpu_of_its_own_to_give_is_not_ended_for_it(old: dict[str, Any]) -> None:
    pods = (old, objects.unplaced(name="new", since=3600))
    assert not decide(observed(*pods, deployment=objects.deployment(progressing="ReplicaSetUpdated"))).fallback


def test_another_shortage_than_gpus_does_not_end_the_old_pod() -> None:
    pods = (
        objects.serving("old", revision=OLD),
        objects.unplaced("0/1 nodes are available: 1 Insufficient memory.", name="new", since=3600),
    )
    rollout = decide(observed(*pods, deployment=objects.deployment(progressing="ReplicaSetUpdated")))
    assert (rollout.fallback, rollout.reason) == (False, "RollingOut")


def test_a_revert_goes_back_to_the_pod_that_serves() -> None:
    """The reverted revision's pod is the one that was old: the pod that waits is the old one now, and ends."""
    pods = (objects.serving("first", revision=NEW), objects.unplaced(name="second", revision=OLD, since=3600))
    rollout = decide(observed(*pods, deployment=objects.deployment(fallback=OLD, progressing="ReplicaSetUpdated")))
    assert (rollout.strategy, rollout.fallback, rollout.reason) == ("Surge", False, "RollingOut")


def test_a_revert_after_the_fallback_surges_first() -> None:
    """The pod of the revision that was given up serves by now: nothing takes it away before the time is over."""
    assert surging(since=59, fallback=OLD).strategy == "Surge"
    assert surging(since=60, fallback=OLD).strategy == "InPlace"


def test_a_spec_that_is_not_deployed_yet_is_rolling_out() -> None:
    rollout = decide(observed(objects.serving(revision=OLD), deployment=objects.deployment(OLD)))
    assert (rollout.in_progress, rollout.reason) == (True, "RollingOut")
    assert decide(observed(deployment=None)).reason == "RollingOut"


def test_all_new_pods_ready_but_an_old_one_draining() -> None:
    rollout = decide(observed(objects.serving("new"), objects.draining("old")))
    assert (rollout.in_progress, rollout.reason) == (True, "Draining")


def test_a_death_after_the_rollout_is_no_rollout() -> None:
    rollout = decide(observed(objects.starting()))
    assert (rollout.in_progress, rollout.reason) == (False, "Complete")


def test_a_condition_of_the_deployment_as_it_was_before_says_nothing() -> None:
    deployment = objects.deployment(progressing="NewReplicaSetAvailable", generation=4, seen=3)
    assert decide(observed(objects.starting(), deployment=deployment)).reason == "RollingOut"


def test_the_deadline() -> None:
    exceeded = objects.deployment(progressing="ProgressDeadlineExceeded")
    rollout = decide(observed(objects.serving("old", revision=OLD), objects.starting("new"), deployment=exceeded))
    assert (rollout.in_progress, rollout.reason) == (False, "DeadlineExceeded")
    assert decide(observed(objects.serving("new"), deployment=exceeded)).reason == "Complete"


def test_a_fallback_is_tried_though_the_deadline_came_first() -> None:
    exceeded = objects.deployment(progressing="ProgressDeadlineExceeded")
    rollout = surging(since=90, deployment=exceeded)
    assert (rollout.fallback, rollout.reason, rollout.in_progress) == (True, "InPlaceFallback", True)


@pytest.mark.parametrize("given", [spec(replicas=0), spec(suspend=True)])
def test_no_pods_wanted(given: dict[str, Any]) -> None:
    assert decide(observed(objects.draining(revision=NEW), spec=given)).reason == "Draining"
    rollout = decide(observed(spec=given))
    assert (rollout.in_progress, rollout.reason) == (False, "Complete")
