"""How a Deployment replaces its pods."""

from __future__ import annotations

from minisgl_operator import api
from minisgl_operator.build.identity import Object


def surge() -> Object:
    """A new pod first, which needs free GPUs: no moment without it."""
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def in_place() -> Object:
    """One old pod ends, a new one takes its GPUs."""
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def recreate() -> Object:
    """All old pods end before any new one starts."""
    return {"type": "Recreate"}


def first_choice(spec: api.Spec) -> Object:
    """Before it is known whether a surge finds its GPUs."""
    match spec.rollout.strategy:
        case "Surge":
            return surge()
        case "InPlace":
            return in_place()
        case "Recreate":
            return recreate()
        case "Auto":
            return in_place() if spec.replicas > 1 else surge()
