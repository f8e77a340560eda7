"""The last steps of the engine and the requests in them, as the page shows them."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

from minisgl.message import Timeline

CAPACITY = 256
"""Steps that are kept."""
NAMES = 4096
"""Requests whose names are kept: more than can be in so many steps of most workers, and few bytes."""


class _Step(NamedTuple):
    number: int
    started: float
    seconds: float
    decoded: list[int]
    read: list[tuple[int, int]]


class RecentSteps:
    """Filled while somebody looks; names of requests are kept in any case, for who looks later."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=CAPACITY)
        self._names: OrderedDict[int, str] = OrderedDict()

    def name(self, uid: int, name: str) -> None:
        """The engine's request `uid` is what clients know as `name`."""
        self._names[uid] = name
        if len(self._names) > NAMES:
            self._names.popitem(last=False)

    def name_of(self, uid: int) -> str:
        return self._names.get(uid, "")

    def add(self, timeline: Timeline) -> None:
        for step in timeline.steps:
            decoded = timeline.crowds[step.crowd]
            self._steps.append(_Step(step.number, step.started, step.seconds, decoded, step.read))

    def since(self, number: int) -> dict[str, Any]:
        """The steps after step `number`, oldest first, and the names of the requests in them.

        `crowds` are lists of requests that decoded together, and a step has the place of its own.
        """
        crowds: list[list[int]] = []
        steps: list[dict[str, Any]] = []
        seen: dict[int, None] = {}
        for step in self._steps:
            if step.number <= number:
                continue
            if not crowds or crowds[-1] != step.decoded:
                crowds.append(step.decoded)
                seen |= dict.fromkeys(step.decoded)
            seen |= dict.fromkeys(uid for uid, _ in step.read)
            steps.append(
                {
                    "number": step.number,
                    "started": round(step.started, 6),
                    "seconds": round(step.seconds, 6),
                    "decoded": len(crowds) - 1,
                    "read": step.read,
                }
            )
        names = {uid: self._names[uid] for uid in seen if uid in self._names}
        return {"steps": steps, "crowds": crowds, "names": names}
