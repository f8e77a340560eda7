"""Where the model lies in a pod, and how it gets there."""

from __future__ import annotations

from minisgl_operator import api
from minisgl_operator.build import pod
from minisgl_operator.build.identity import DOWNLOAD_CONTAINER, Object

MODELS = "/models"
"""Downloaded models, each in its own directory."""
MODEL = "/model"
"""The one model that a volume brings."""


class NoModel(ValueError):
    """The spec's source is one that cannot be served (yet)."""


def downloaded_path(source: api.HuggingFace) -> str:
    return f"{MODELS}/{source.repo}/{source.revision}"


def model_path(spec: api.Spec) -> str:
    """The worker's ``--model``."""
    return MODEL if spec.model.hugging_face is None else downloaded_path(spec.model.hugging_face)


def volume(spec: api.Spec, claim: str | None) -> Object:
    """The volume of the model. `claim` is the cache, or the source itself; without one, each pod downloads."""
    if spec.model.hugging_face is not None:
        kept = {"emptyDir": {}} if claim is None else {"persistentVolumeClaim": {"claimName": claim}}
        return {"name": "models", **kept}
    if spec.model.pvc is not None:
        # Read-only as a whole, so that the group of the user's files is left as it is.
        return {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    if spec.model.oci is not None:
        return {"name": "model", "image": {"reference": spec.model.oci.image, "pullPolicy": "IfNotPresent"}}
    raise NoModel("spec.model has no source that can be served: huggingFace, pvc or oci")


def mount(spec: api.Spec) -> Object:
    """For the worker, which only reads."""
    if spec.model.hugging_face is not None:
        return {"name": "models", "mountPath": MODELS, "readOnly": True}
    mounted: Object = {"name": "model", "mountPath": MODEL, "readOnly": True}
    if spec.model.pvc is not None and spec.model.pvc.sub_path is not None:
        mounted["subPath"] = spec.model.pvc.sub_path
    return mounted


def download_container(
    spec: api.Spec, source: api.HuggingFace, image: str, pull_policy: str | None = None
) -> Object:
    """Fills the volume `models`. It alone gets the token of the hub."""
    own: list[Object] = []
    if source.token_secret_ref is not None:
        token = source.token_secret_ref
        secret = {"secretKeyRef": {"name": token.name, "key": token.key}}
        own.append({"name": "HF_TOKEN", "valueFrom": secret})
    return {
        **pod.container(DOWNLOAD_CONTAINER, image, pull_policy),
        "command": ["python", "-m", "minisgl.download"],
        "args": [
            f"--repo={source.repo}",
            f"--revision={source.revision}",
            f"--into={downloaded_path(source)}",
        ],
        **pod.environment(spec, own),
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [*pod.scratch_mounts(), {"name": "models", "mountPath": MODELS}],
    }
