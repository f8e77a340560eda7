"""From a pod to processes of this machine: the same commands, environment, files and probes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisgl_operator import api
from minisgl_operator.build import pod as built_pod
from minisgl_operator.build.cache import download_job, needs_cache
from minisgl_operator.build.engine_args import served_name
from minisgl_operator.build.identity import Identity, Object
from minisgl_operator.build.model import model_path
from minisgl_operator.build.revision import ROLLOUT_FIELDS
from minisgl_operator.build.template import API_KEY_DIRECTORY, API_KEY_FILE, pod_template
from minisgl_operator.local.errors import LocalError
from minisgl_operator.observe.unsupported import unsupported

IMAGE = "local"
"""Of the pod that is built here, and which no one pulls."""
SHARED = ("/tmp", "/dev/shm")
"""Mount paths that a machine has too."""
HOMES = ("HOME", "XDG_CACHE_HOME", "HF_HOME")
"""Variables that stay the user's own: the login to the hub is below them. The other caches are ours."""

CLUSTER_FIELDS = (
    "cache",
    "gpuResourceName",
    "image",
    "imagePullSecrets",
    "networkPolicy",
    "podAnnotations",
    "podLabels",
    "resources",
    "scheduling",
    "service",
    "sharedMemory",
)
"""Of the spec, those that have no effect on one machine."""

Secrets = Mapping[str, Mapping[str, str]]
"""Their values by name and key."""


@dataclass(frozen=True)
class Place:
    """Where the pod's volumes are on this machine. All paths are absolute."""

    models: Path
    """Downloaded models, and a directory for each volume claim."""
    cache: Path
    """Outlives a run: compiled kernels are here."""
    scratch: Path
    """Private to one run."""
    model: Path | None = None
    """The downloaded model, where it is there already."""


@dataclass(frozen=True)
class Process:
    command: list[str]
    environment: dict[str, str]
    """All of it."""


@dataclass(frozen=True)
class Probe:
    path: str
    period: float
    timeout: float
    failures: int
    """In a row, after which the worker is given up."""


@dataclass(frozen=True)
class LocalPod:
    served_name: str
    model: Path
    """The directory that the worker reads."""
    download: Process | None
    """Runs before the worker. None: the model is there."""
    worker: Process
    startup: Probe
    liveness: Probe
    grace_seconds: int
    """What the worker may take to end."""
    files: dict[Path, str]
    """To be written for it, and to be read by this user alone."""
    key_file: Path | None
    """Of the files, the one with the key that clients must send."""


def processes(
    document: Mapping[str, Any],
    secrets: Secrets,
    place: Place,
    *,
    host: str,
    port: int,
    environ: Mapping[str, str],
) -> LocalPod:
    """The validated `document` as it runs here, on top of the environment `environ`. Raises `LocalError`."""
    spec = api.Spec.model_validate(document["spec"])
    _refuse(spec)
    identity = Identity.of(document)
    template = pod_template(identity, spec, IMAGE)["spec"]
    (worker,) = template["containers"]
    files = _secret_files(template["volumes"], secrets, place)
    mounts = _Mounts(spec, template["volumes"], worker["volumeMounts"], place)
    download = None
    if spec.model.hugging_face is not None and place.model is None:
        download = _process(_download_container(identity, spec, template), mounts, secrets, environ)
    return LocalPod(
        served_name=served_name(identity.name, spec),
        model=Path(mounts.translate(model_path(spec))),
        download=download,
        worker=_process(worker, mounts, secrets, environ, {"--host": host, "--port": str(port)}),
        startup=_probe(worker["startupProbe"]),
        liveness=_probe(worker["livenessProbe"]),
        grace_seconds=template["terminationGracePeriodSeconds"],
        files=files,
        key_file=None if spec.auth is None else Path(mounts.translate(f"{API_KEY_DIRECTORY}/{API_KEY_FILE}")),
    )


def notes(spec: api.Spec) -> list[str]:
    """A line for each thing that was asked for and is not done here."""
    given = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    lines = [] if spec.replicas == 1 else [f"spec.replicas is {spec.replicas}: one runs here"]
    unused = [f"spec.{field}" for field in CLUSTER_FIELDS if field in given]
    unused += [f"spec.rollout.{field}" for field in ROLLOUT_FIELDS if field in given.get("rollout", {})]
    return lines + ([f"without a cluster these have no effect: {', '.join(unused)}"] if unused else [])


def _refuse(spec: api.Spec) -> None:
    if later := unsupported(spec):
        raise LocalError(f"not supported yet: {', '.join(later)}")
    if spec.model.oci is not None:
        raise LocalError("spec.model.oci: an image cannot be mounted here; use huggingFace or pvc")
    if spec.env_from:
        raise LocalError("spec.envFrom: what it names is in a cluster; give the variables in spec.env")


def _download_container(identity: Identity, spec: api.Spec, template: Object) -> Object:
    """Of the pod itself, or of the Job that fills its cache."""
    if needs_cache(spec):
        template = download_job(identity, spec, IMAGE, "")["spec"]["template"]["spec"]
        (container,) = template["containers"]
    else:
        (container,) = template["initContainers"]
    return dict(container)


class _Mounts:
    """Paths of the pod become paths of this machine."""

    def __init__(self, spec: api.Spec, volumes: list[Object], mounts: list[Object], place: Place) -> None:
        sources = {volume["name"]: _source(volume, place) for volume in volumes}
        self._paths: dict[str, Path] = {}
        if place.model is not None:
            self._paths[model_path(spec)] = place.model
        for mount in mounts:
            if mount["mountPath"] not in SHARED:
                self._paths[mount["mountPath"]] = sources[mount["name"]] / mount.get("subPath", "")
        # The longest is tried first, and none begins in the middle of another path.
        ordered = sorted(self._paths, key=len, reverse=True)
        self._pattern = re.compile(rf"(?:^|(?<=[=:,]))({'|'.join(map(re.escape, ordered))})(?=[/:,]|$)")

    def translate(self, text: str) -> str:
        """`text` with the paths that it is, or that it holds behind one of ``= : ,``."""
        return self._pattern.sub(lambda match: str(self._paths[match[1]]), text)


def _source(volume: Object, place: Place) -> Path:
    if volume["name"] == "models":  # an emptyDir, or the claim of a cache
        return place.models
    if "persistentVolumeClaim" in volume:
        return place.models / str(volume["persistentVolumeClaim"]["claimName"])
    return place.cache if volume["name"] == "cache" else place.scratch / str(volume["name"])


def _secret_files(volumes: list[Object], secrets: Secrets, place: Place) -> dict[Path, str]:
    files: dict[Path, str] = {}
    for volume in volumes:
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            for item in volume["secret"]["items"]:
                files[_source(volume, place) / item["path"]] = _secret(secrets, name, item["key"])
    return files


def _secret(secrets: Secrets, name: str, key: str) -> str:
    if name not in secrets:
        raise LocalError(f"Secret {name} is not in the file: add it there as another document, with the key {key}")
    if key not in secrets[name]:
        raise LocalError(f"Secret {name} has no key {key}")
    return secrets[name][key]


# --- one container ---


def _process(
    container: Object,
    mounts: _Mounts,
    secrets: Secrets,
    environ: Mapping[str, str],
    options: Mapping[str, str] | None = None,
) -> Process:
    """`options` take the place of the container's own."""
    environment = _environment(container["env"], mounts, secrets, environ)
    program: str = container["command"][0]
    arguments: list[str] = [*container["command"][1:], *container["args"]]
    command = [sys.executable if program == "python" else program]
    for argument in arguments:
        option = argument.partition("=")[0]
        if options is not None and option in options:
            command.append(f"{option}={options[option]}")
        else:
            command.append(_expand(mounts.translate(argument), environment))
    inherited = dict(environ)
    if "MINISGL_API_KEY_FILE" in environment:  # the worker takes one key, and the file's is the one
        inherited.pop("MINISGL_API_KEY", None)
    return Process(command, inherited | environment)


def _environment(
    variables: list[Object], mounts: _Mounts, secrets: Secrets, environ: Mapping[str, str]
) -> dict[str, str]:
    made: dict[str, str] = {}
    for variable in variables:
        name, source = variable["name"], variable.get("valueFrom")
        if source is not None:
            value = _value_from(name, source, secrets, environ)
        elif name in HOMES and variable.get("value") == built_pod.CACHE_ENVIRONMENT[name]:
            value = environ.get(name)
        else:
            value = _expand(mounts.translate(variable.get("value", "")), made)
        if value is not None:
            made[name] = value
    return made


def _value_from(name: str, source: Object, secrets: Secrets, environ: Mapping[str, str]) -> str | None:
    """Of a Secret in the file, else of the environment, where a user may have it already."""
    if list(source) != ["secretKeyRef"]:
        raise LocalError(f"spec.env: {name}: valueFrom.{next(iter(source), '')} needs a cluster; give a value")
    wanted = source["secretKeyRef"]
    if not isinstance(wanted, dict) or not {"name", "key"} <= wanted.keys():
        raise LocalError(f"spec.env: {name}: valueFrom.secretKeyRef must have a name and a key")
    if wanted["key"] in secrets.get(wanted["name"], {}):
        return secrets[wanted["name"]][wanted["key"]]
    if name in environ or wanted.get("optional"):
        return environ.get(name)
    try:
        return _secret(secrets, wanted["name"], wanted["key"])
    except LocalError as error:
        raise LocalError(f"{error}; or set {name} in the environment") from None


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes reads it: `$$` is a dollar, and an unknown name stays as it is."""
    return re.sub(
        r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)",
        lambda match: "$" if match[1] is None else environment.get(match[1], match[0]),
        text,
    )


def _probe(given: Object) -> Probe:
    return Probe(
        given["httpGet"]["path"], given["periodSeconds"], given["timeoutSeconds"], given["failureThreshold"]
    )
