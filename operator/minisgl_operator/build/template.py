"""The pod that serves."""

from __future__ import annotations

from copy import deepcopy

from minisgl_operator import api
from minisgl_operator.build import engine_args, model, pod
from minisgl_operator.build.cache import claim_name
from minisgl_operator.build.identity import PORT_NAME, WORKER_CONTAINER, Identity, Object, selector

API_KEY_DIRECTORY = "/etc/minisgl"
API_KEY_FILE = "api-key"

PROBE_SECONDS = 2
"""Between two looks at a pod that starts or serves: what a status may lag behind."""
PROBE_TIMEOUT_SECONDS = 5
KILL_SECONDS = 30
"""What a pod gets beyond its drain, before it is killed."""


def pod_template(identity: Identity, spec: api.Spec, image: str, *, pull_policy: str | None = None) -> Object:
    """Of the worker's Deployment. `pull_policy` None: what Kubernetes does for `image`.

    Raises `model.NoModel` for a source that cannot be served.
    """
    claim = claim_name(identity, spec)
    made = pod.template(identity, spec, "worker")
    body = made["spec"]
    source = spec.model.hugging_face
    if source is not None and claim is None:
        body["initContainers"] = [model.download_container(spec, source, image, pull_policy)]
    body["containers"] = [_worker(identity, spec, image, pull_policy)]
    body["volumes"] = [model.volume(spec, claim), *pod.scratch_volumes(), _shared_memory(spec)]
    if spec.auth is not None:
        body["volumes"].append(_api_key(spec.auth.api_key_secret_ref))
    if spec.scheduling.topology_spread:
        body["topologySpreadConstraints"] = _topology_spread(identity, spec)
    body["terminationGracePeriodSeconds"] = (
        engine_args.DRAIN_GRACE_SECONDS + spec.rollout.drain_timeout_seconds + KILL_SECONDS
    )
    return made


def _worker(identity: Identity, spec: api.Spec, image: str, pull_policy: str | None) -> Object:
    own: list[Object] = []
    mounts = [model.mount(spec), *pod.scratch_mounts(), {"name": "shm", "mountPath": "/dev/shm"}]
    if spec.auth is not None:
        own.append({"name": "MINISGL_API_KEY_FILE", "value": f"{API_KEY_DIRECTORY}/{API_KEY_FILE}"})
        mounts.append({"name": "api-key", "mountPath": API_KEY_DIRECTORY, "readOnly": True})
    return {
        **pod.container(WORKER_CONTAINER, image, pull_policy),
        "command": list(engine_args.COMMAND),
        "args": engine_args.worker_args(identity.name, spec, model.model_path(spec)),
        **pod.environment(spec, own),
        "ports": [{"name": PORT_NAME, "containerPort": engine_args.PORT, "protocol": "TCP"}],
        "resources": _resources(spec),
        "volumeMounts": mounts,
        **_probes(spec.probes.startup_timeout_seconds),
    }


def _resources(spec: api.Spec) -> Object:
    given = spec.resources or api.Resources()
    gpus = {spec.gpu_resource_name: str(spec.parallelism.tensor)} if spec.engine.device == "cuda" else {}
    sides = {"requests": {**given.requests, **gpus}, "limits": {**given.limits, **gpus}}
    return {side: quantities for side, quantities in sides.items() if quantities}


def _probes(startup_seconds: int) -> Object:
    """Of the three, only the startup probe may end a pod soon: a busy worker answers late, and is alive."""
    ready = {"httpGet": {"path": "/ready", "port": PORT_NAME}, "timeoutSeconds": PROBE_TIMEOUT_SECONDS}
    live = {"httpGet": {"path": "/live", "port": PORT_NAME}, "timeoutSeconds": PROBE_TIMEOUT_SECONDS}
    looks = -(-startup_seconds // PROBE_SECONDS)
    return {
        "startupProbe": {**deepcopy(ready), "periodSeconds": PROBE_SECONDS, "failureThreshold": looks},
        "readinessProbe": {**ready, "periodSeconds": PROBE_SECONDS, "failureThreshold": 2},
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 6},
    }


def _shared_memory(spec: api.Spec) -> Object:
    """Ranks talk to each other through it; the 64 MiB of a container are too few."""
    size = f"{spec.parallelism.tensor}Gi" if spec.shared_memory is None else spec.shared_memory
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def _api_key(secret: api.ApiKeyRef) -> Object:
    return {
        "name": "api-key",
        "secret": {
            "secretName": secret.name,
            "items": [{"key": secret.key, "path": API_KEY_FILE}],
            "defaultMode": 0o440,
        },
    }


def _topology_spread(identity: Identity, spec: api.Spec) -> list[Object]:
    """A constraint without a selector is meant for the pods of this service."""
    own = {"labelSelector": {"matchLabels": selector(identity)}}
    return [{**deepcopy(own), **deepcopy(given)} for given in spec.scheduling.topology_spread]
