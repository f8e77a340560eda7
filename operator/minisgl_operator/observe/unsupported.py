"""Fields whose feature a later version brings: setting one is refused, never ignored."""

from __future__ import annotations

from minisgl_operator import api


def unsupported(spec: api.Spec) -> list[str]:
    """Paths of the fields that are set and that nothing here acts on."""
    later = {
        "spec.model.s3": spec.model.s3,
        "spec.autoscaling": spec.autoscaling,
        "spec.tls": spec.tls,
        "spec.monitoring": spec.monitoring,
        "spec.gateway": spec.gateway,
    }
    return [path for path, value in later.items() if value is not None]
