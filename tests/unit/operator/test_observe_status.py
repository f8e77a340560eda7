"""The status as a whole: its times, what is worth an Event, and what holds for any cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from minisgl_operator import api
from minisgl_operator.observe.conditions import conditions
from minisgl_operator.observe.observed import Observed
from minisgl_operator.observe.rollout import decide
from minisgl_operator.observe.status import status, transitions
from support import cluster_objects as objects
from support.cluster_objects import (
    CACHED,
    HUGGING_FACE,
    NEW,
    OCI,
    OLD,
    Object,
    container,
    observed,
    running,
    terminated,
    waiting,
)


def found(seen: Observed) -> dict[str, api.Condition]:
    return {condition.type: condition for condition in conditions(seen, decide(seen))}


def crashed(code: int, log: str = "", *, name: str = "qwen3-1", revision: str = NEW, **more: Any) -> Object:
    return objects.pod(container("worker", terminated(code, log, **more)), name=name, revision=revision)


def two(**more: Any) -> Object:
    return {**OCI, "replicas": 2, **more}


def later(seen: Observed, *pods: Object, seconds: float = 60) -> Observed:
    """The next reconcile, after the status was written."""
    written = status(seen, decide(seen), url="", selector="", image=None)
    now = seen.now + timedelta(seconds=seconds)
    return replace(seen, service={**seen.service, "status": written}, pods=pods, now=now)


def test_the_transition_time_moves_with_the_status_and_not_with_the_reason() -> None:
    first = observed(objects.starting())
    second = later(first, crashed(1))
    assert found(second)["Ready"].reason == "EngineDied"
    assert found(second)["Ready"].last_transition_time == "2026-11-21T12:00:00Z"
    assert found(second)["Degraded"].last_transition_time == "2026-11-21T12:01:00Z"
    third = later(second, objects.serving())
    assert found(third)["Ready"].last_transition_time == "2026-11-21T12:02:00Z"
    assert found(third)["ModelCached"].last_transition_time == "2026-11-21T12:00:00Z"


def test_time_alone_changes_nothing() -> None:
    pods = (crashed(1), objects.unplaced(name="b"))
    first = observed(*pods, spec=two())
    second = later(first, *pods, seconds=3600)
    assert conditions(second, decide(second)) == conditions(first, decide(first))


def test_transitions_are_what_an_event_is_made_of() -> None:
    first, second = observed(objects.starting()), observed(crashed(1))
    before, after = (conditions(seen, decide(seen)) for seen in (first, second))
    assert [item.type for item in transitions([], before)] == ["Ready", "Available"]
    assert transitions(before, before) == []
    changed = {item.type: item.reason for item in transitions(before, after)}
    assert changed == {"Ready": "EngineDied", "Degraded": "EngineDied"}
    assert {item.type for item in transitions(after, before)} == {"Ready", "Degraded"}


# The whole status.


def test_the_status_by_the_names_of_the_resource() -> None:
    startup = api.Startup(pod="new", load_seconds=4.5)
    seen = observed(
        objects.serving("new"), objects.serving("old", revision=OLD), objects.draining("older"), startup=startup
    )
    written = status(seen, decide(seen), url="http://qwen3.default.svc/v1", selector="a=b", image=objects.IMAGE)
    written.pop("conditions")
    assert written == {
        "observedGeneration": 4,
        "url": "http://qwen3.default.svc/v1",
        "servedModel": "qwen3",
        "selector": "a=b",
        "replicas": 2,
        "readyReplicas": 2,
        "updatedReplicas": 1,
        "currentRevision": NEW,
        "workerImage": objects.IMAGE,
        "lastStartup": {"pod": "new", "loadSeconds": 4.5},
    }


def test_the_last_startup_is_kept() -> None:
    seen = observed(objects.serving(), status={"lastStartup": {"pod": "new", "loadSeconds": 4.5}})
    written = status(seen, decide(seen), url="", selector="", image=None)
    assert written["lastStartup"] == {"pod": "new", "loadSeconds": 4.5}


# Any cluster.

WORKER_STATES: st.SearchStrategy[Object] = st.one_of(
    st.builds(running, st.integers(0, 900)),
    st.builds(
        waiting,
        st.sampled_from(["ContainerCreating", "CrashLoopBackOff", "ErrImagePull", "CreateContainerConfigError"]),
    ),
    st.builds(terminated, st.sampled_from([0, 1, 2, 137]), st.sampled_from(["", "minisgl: error: --tp 2: no"])),
)


@st.composite
def pods(draw: st.DrawFn, name: str) -> Object:
    revision = draw(st.sampled_from([NEW, OLD]))
    kind = draw(st.sampled_from(["serving", "unplaced", "draining", "evicted", "any", "any"]))
    if kind == "unplaced":
        return objects.unplaced(name=name, revision=revision, since=draw(st.integers(0, 120)))
    if kind != "any":
        made: Object = getattr(objects, kind)(name, revision=revision)
        return made
    last = draw(st.none() | st.builds(terminated, st.sampled_from([1, 2, 137])))
    restarts = draw(st.integers(0, 4))
    worker = container("worker", draw(WORKER_STATES), last=last, restarts=restarts, started=draw(st.booleans()))
    download = draw(st.none() | st.builds(terminated, st.sampled_from([0, 10, 13])))
    return objects.pod(
        worker,
        name=name,
        revision=revision,
        age=draw(st.integers(0, 900)),
        init=None if download is None else container("download", download),
        terminating=draw(st.booleans()),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Observed:
    spec = {
        **draw(st.sampled_from([OCI, HUGGING_FACE, CACHED])),
        "replicas": draw(st.integers(0, 3)),
        "suspend": draw(st.booleans()),
        "rollout": {"strategy": draw(st.sampled_from(["Auto", "Surge", "InPlace", "Recreate"]))},
    }
    drawn = [draw(pods(f"pod-{index}")) for index in range(draw(st.integers(0, 4)))]
    reasons = ["NewReplicaSetAvailable", "ReplicaSetUpdated", "ProgressDeadlineExceeded"]
    deployment = objects.deployment(
        draw(st.sampled_from([NEW, OLD])),
        fallback=draw(st.sampled_from(["", NEW, OLD])),
        progressing=draw(st.sampled_from(reasons)),
        seen=draw(st.integers(2, 3)),
    )
    return observed(
        *drawn,
        spec=spec,
        deployment=draw(st.none() | st.just(deployment)),
        claim=objects.claim(draw(st.sampled_from(["Bound", "Pending"]))),
        job=objects.job(draw(st.sampled_from(["", "Complete", "Failed"]))),
    )


@given(clusters())
def test_ready_means_ready(seen: Observed) -> None:
    """The wanted pods of this revision serve, no other pod is there, and nothing else is said to be wrong."""
    states = [state for state in seen.states if not state.finished]
    whole = (
        seen.wanted > 0
        and len(states) == seen.wanted
        and all(state.ready and state.revision == NEW for state in states)
        and seen.deployed_revision == NEW
    )
    told_of = found(seen)
    if told_of["Ready"].status == "True":
        assert whole
        assert told_of["Available"].status == "True"
        assert told_of["Progressing"].status == "False"
        assert told_of["ConfigValid"].status == "True"
        assert told_of["Degraded"].status == "False"
    if whole and seen.claim == objects.claim():
        assert told_of["Ready"].status == "True"


@given(clusters())
def test_what_was_written_is_not_written_again(seen: Observed) -> None:
    first = status(seen, decide(seen), url="u", selector="s", image="i")
    again = replace(seen, service={**seen.service, "status": first})
    assert status(again, decide(again), url="u", selector="s", image="i") == first
    kept = [api.Condition.model_validate(item) for item in first["conditions"]]
    assert transitions(kept, conditions(again, decide(again))) == []


@given(st.permutations(["a", "b", "c"]), st.data())
def test_the_order_of_the_pods_says_nothing(order: list[str], data: st.DataObject) -> None:
    drawn = {name: data.draw(pods(name)) for name in ("a", "b", "c")}
    first, second = observed(*drawn.values(), spec=two()), observed(*(drawn[name] for name in order), spec=two())
    assert conditions(first, decide(first)) == conditions(second, decide(second))


@given(clusters())
def test_a_fallback_costs_nothing_that_was_not_agreed(seen: Observed) -> None:
    rollout = decide(seen)
    if rollout.fallback:
        assert seen.spec.rollout.strategy == "Auto"
        assert seen.spec.replicas == 1
        assert rollout.strategy == "InPlace"
    if rollout.requeue_after is not None:
        assert 0 < rollout.requeue_after <= seen.spec.rollout.surge_timeout_seconds
        due = replace(seen, now=seen.now + timedelta(seconds=rollout.requeue_after))
        assert decide(due).fallback
