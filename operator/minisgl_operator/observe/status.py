"""The whole status of a service, and what of it is worth an Event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisgl_operator import api
from minisgl_operator.observe.conditions import EXPECTED, conditions
from minisgl_operator.observe.model import cache_status, model_state
from minisgl_operator.observe.observed import Observed
from minisgl_operator.observe.rollout import Rollout


def status(observed: Observed, rollout: Rollout, *, url: str, selector: str, image: str | None) -> dict[str, Any]:
    """By the names of the resource; what is not known is left out."""
    return api.Status(
        observed_generation=observed.generation,
        url=url,
        served_model=observed.spec.model.served_name or observed.service["metadata"]["name"],
        selector=selector,
        replicas=len(observed.live),
        ready_replicas=sum(state.ready for state in observed.live),
        updated_replicas=len(observed.current),
        current_revision=observed.deployed_revision,
        worker_image=image,
        cache=cache_status(observed, model_state(observed)),
        last_startup=observed.startup or _last_startup(observed),
        conditions=conditions(observed, rollout),
    ).model_dump(mode="json", by_alias=True, exclude_none=True)


def transitions(old: Sequence[api.Condition], new: Sequence[api.Condition]) -> list[api.Condition]:
    """Those of `new` whose status or reason changed; a first condition that has nothing to tell is none."""
    before = {condition.type: (condition.status, condition.reason) for condition in old}
    changed = []
    for condition in new:
        if condition.type in before:
            tells = before[condition.type] != (condition.status, condition.reason)
        else:
            tells = condition.status != EXPECTED.get(condition.type)
        if tells:
            changed.append(condition)
    return changed


def _last_startup(observed: Observed) -> api.Startup | None:
    held = (observed.service.get("status") or {}).get("lastStartup")
    return None if held is None else api.Startup.model_validate(held)
