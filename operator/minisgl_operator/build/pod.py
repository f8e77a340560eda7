"""What the pods of the worker and of the download have in common: safety, placement, writable places."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from minisgl_operator import api
from minisgl_operator.build.identity import Component, Identity, Object, labels

USER = 65532
"""The images' user and group."""
CACHE = "/cache"
"""Home of everything that libraries keep: the root file system is read-only."""

CACHE_ENVIRONMENT = {
    "HOME": CACHE,
    "XDG_CACHE_HOME": CACHE,
    "HF_HOME": f"{CACHE}/huggingface",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "FLASHINFER_WORKSPACE_BASE": CACHE,
}


def template(identity: Identity, spec: api.Spec, component: Component) -> Object:
    """A pod template without containers and volumes. The spec's labels never replace ours."""
    metadata: Object = {"labels": {**spec.pod_labels, **labels(identity, component)}}
    if spec.pod_annotations:
        metadata["annotations"] = dict(spec.pod_annotations)
    pod: Object = {
        "serviceAccountName": identity.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            # A large model is not walked through again at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_placement(spec),
    }
    if spec.image_pull_secrets:
        secrets = dict.fromkeys(secret.name for secret in spec.image_pull_secrets)
        pod["imagePullSecrets"] = [{"name": name} for name in secrets]
    return {"metadata": metadata, "spec": pod}


def _placement(spec: api.Spec) -> Object:
    """Where pods may run. The same for the download, whose volume must land where workers can reach it."""
    scheduling = spec.scheduling
    fields = {
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": deepcopy(scheduling.tolerations),
        "affinity": deepcopy(scheduling.affinity),
        "priorityClassName": scheduling.priority_class_name,
        "runtimeClassName": scheduling.runtime_class_name,
    }
    return {name: value for name, value in fields.items() if value}


def container(name: str, image: str, pull_policy: str | None) -> Object:
    made: Object = {
        "name": name,
        "image": image,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The last line that a failed process wrote becomes part of the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if pull_policy is not None:
        made["imagePullPolicy"] = pull_policy
    return made


def environment(spec: api.Spec, own: Sequence[Object] = ()) -> Object:
    """`env` and `envFrom` of a container: cache directories, then the spec's variables, then `own`.

    A later one of the same name takes the place of an earlier one: the API refuses a name that is there twice.
    """
    variables: dict[str, Object] = {
        name: {"name": name, "value": value} for name, value in CACHE_ENVIRONMENT.items()
    }
    for given in (*(_variable(item) for item in spec.env), *own):
        # At the end, for `$(NAME)` in a value reads the variables before it.
        variables.pop(given["name"], None)
        variables[given["name"]] = given
    made: Object = {"env": list(variables.values())}
    if spec.env_from:
        made["envFrom"] = deepcopy(spec.env_from)
    return made


def _variable(given: api.EnvVar) -> Object:
    made: Object = {"name": given.name}
    if given.value is not None:
        made["value"] = given.value
    if given.value_from is not None:
        made["valueFrom"] = deepcopy(given.value_from)
    return made


def scratch_volumes() -> list[Object]:
    return [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]


def scratch_mounts() -> list[Object]:
    return [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": "/tmp"}]
