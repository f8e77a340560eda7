"""When an object must be applied, and when that would change nothing."""

from __future__ import annotations

from typing import Any

from minisgl_operator.applied import LAG_SECONDS, AppliedMemory, key_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def wanted(port: int = 80) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": "default", "labels": {"own": "yes"}},
        "spec": {"ports": [{"port": port}]},
    }


def live(version: int, port: int = 80, **metadata: Any) -> dict[str, Any]:
    """As the API server answers: with fields that nobody asked for."""
    answer = wanted(port)
    answer["metadata"].update(uid="u", resourceVersion=str(version), **metadata)
    answer["spec"]["clusterIP"] = "10.0.0.7"
    return answer


def test_what_was_applied_and_has_stayed_is_current() -> None:
    memory = AppliedMemory()
    assert not memory.is_current(wanted(), None)
    memory.remember(wanted(), None, live(1))
    assert memory.is_current(wanted(), live(1))
    assert not memory.is_current(wanted(81), live(1))


def test_its_own_progress_is_no_drift() -> None:
    memory = AppliedMemory()
    memory.remember(wanted(), None, live(1))
    moved = live(9, annotations={"deployment.kubernetes.io/revision": "2"}, managedFields=[{"manager": "x"}])
    moved["status"] = {"loadBalancer": {}}
    assert memory.is_current(wanted(), moved)


def test_a_hand_edit_is_drift() -> None:
    memory = AppliedMemory()
    memory.remember(wanted(), None, live(1))
    assert memory.is_current(wanted(), live(1))
    assert not memory.is_current(wanted(), live(2, port=9999))
    assert not memory.is_current(wanted(), live(2, labels={}))
    assert not memory.is_current(wanted(), live(2, ownerReferences=[]))


def test_a_watch_that_lags_is_no_drift_but_not_for_ever() -> None:
    clock = Clock()
    memory = AppliedMemory(clock)
    memory.remember(wanted(81), live(1), live(2, port=81))
    assert memory.is_current(wanted(81), live(1))
    clock.now = LAG_SECONDS
    assert not memory.is_current(wanted(81), live(1))
    assert memory.is_current(wanted(81), live(2, port=81))


def test_an_object_that_is_deleted_is_applied_again() -> None:
    clock = Clock()
    memory = AppliedMemory(clock)
    memory.remember(wanted(), None, live(1))
    assert memory.is_current(wanted(), None)
    assert memory.is_current(wanted(), live(1))
    assert not memory.is_current(wanted(), None)
    memory.remember(wanted(), None, live(1))
    clock.now = LAG_SECONDS
    assert not memory.is_current(wanted(), None)


def test_a_forgotten_object_is_applied_again() -> None:
    memory = AppliedMemory()
    memory.remember(wanted(), None, live(1))
    memory.forget([key_of(wanted())])
    assert not memory.is_current(wanted(), live(1))
