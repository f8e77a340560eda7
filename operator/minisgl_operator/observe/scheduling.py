"""Why the scheduler places a pod on no node: its sentence becomes a reason."""

from __future__ import annotations

import re

PVC_PENDING = "PVCPending"
"""The one cause that is not about nodes: the pod's claim has no volume."""
INSUFFICIENT_GPU = "InsufficientGPU"

_PREEMPTION = re.compile(r"\s*(no new claims to deallocate,\s*)?preemption: .*$", re.DOTALL)
# A node is told of by the first check that it fails. The checks run in this order from the end: what a node with
# less in its way lacks says more than that other nodes were never meant for the pod.
_CAUSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("InsufficientCPU", ("Insufficient cpu",)),
    ("InsufficientMemory", ("Insufficient memory",)),
    (
        PVC_PENDING,
        (
            "unbound immediate PersistentVolumeClaims",
            "find available persistent volumes to bind",
            "did not have enough free storage",
            'persistentvolumeclaim "',
        ),
    ),
    (
        "VolumeConflict",
        (
            "volume node affinity conflict",
            "PersistentVolume's node affinity",
            "no available volume zone",
            "exceed max volume count",
            "ReadWriteOncePod access mode",
        ),
    ),
    ("UntoleratedTaint", ("untolerated taint",)),
    ("NodeSelectorMismatch", ("node affinity/selector", "pod affinity rules", "pod anti-affinity rules")),
)


def unschedulable_reason(message: str, gpu_resource: str) -> str:
    """The reason for the condition. Of several causes the GPUs come first: they are what is scarce."""
    told = without_preemption(message)
    if f"Insufficient {gpu_resource}" in told:
        return INSUFFICIENT_GPU
    return next((reason for reason, signs in _CAUSES if any(sign in told for sign in signs)), "Unschedulable")


def without_preemption(message: str) -> str:
    """The scheduler's sentence about nodes; what it says of preemption helps nobody and changes more often."""
    return _PREEMPTION.sub("", message).strip()
