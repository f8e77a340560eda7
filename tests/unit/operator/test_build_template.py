"""The pod that serves, part by part."""

from __future__ import annotations

from typing import Any

import pytest

from minisgl_operator import api
from minisgl_operator.build.identity import Identity
from minisgl_operator.build.model import NoModel
from minisgl_operator.build.template import pod_template

Json = dict[str, Any]
IDENTITY = Identity("qwen3", "team-a", "uid-1")
HUB = {"huggingFace": {"repo": "Qwen/Qwen3-14B"}}


def template(model: Json | None = None, **fields: Any) -> Json:
    spec = api.Spec.model_validate({"model": model or HUB, **fields})
    return pod_template(IDENTITY, spec, "worker:1")


def worker(model: Json | None = None, **fields: Any) -> Json:
    container: Json = template(model, **fields)["spec"]["containers"][0]
    return container


def environment(container: Json) -> Json:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def volumes(made: Json) -> Json:
    return {volume["name"]: volume for volume in made["spec"]["volumes"]}


def mounts(container: Json) -> Json:
    return {mount["name"]: mount for mount in container["volumeMounts"]}


def test_the_command_says_what_the_spec_says_and_no_more() -> None:
    assert worker()["command"] == ["python", "-m", "minisgl"]
    assert worker()["args"] == [
        "--model=/models/Qwen/Qwen3-14B/main",
        "--served-model-name=qwen3",
        "--host=0.0.0.0",
        "--port=8000",
        "--device=cuda",
        "--tp=1",
        "--drain-grace=5",
        "--drain-timeout=120",
        "--cache=radix",
    ]
    tuned = worker(
        engine={"attentionBackend": "fa,fi", "memoryRatio": 0.00001, "extraArgs": ["--log-level", "debug"]}
    )["args"]
    assert tuned[-4:] == ["--attn=fa,fi", "--memory-ratio=0.00001", "--log-level", "debug"]


def test_without_a_cache_each_pod_downloads_the_model() -> None:
    secret = {"name": "hub", "key": "TOKEN"}
    source = {"repo": "Qwen/Qwen3-14B", "revision": "refs/pr/1", "tokenSecretRef": secret}
    made = template({"huggingFace": source}, env=[{"name": "HF_ENDPOINT", "value": "http://hub"}])
    download = made["spec"]["initContainers"][0]
    assert download["name"] == "download"
    assert download["image"] == "worker:1"
    assert download["command"] == ["python", "-m", "minisgl.download"]
    target = "/models/Qwen/Qwen3-14B/refs/pr/1"
    assert download["args"] == ["--repo=Qwen/Qwen3-14B", "--revision=refs/pr/1", f"--into={target}"]
    assert environment(download)["HF_TOKEN"] == {"secretKeyRef": secret}
    assert environment(download)["HF_ENDPOINT"] == "http://hub"
    assert "readOnly" not in mounts(download)["models"]
    serving = made["spec"]["containers"][0]
    assert f"--model={target}" in serving["args"]
    assert "HF_TOKEN" not in environment(serving)
    assert mounts(serving)["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert volumes(made)["models"] == {"name": "models", "emptyDir": {}}


@pytest.mark.parametrize(
    ("cache", "claim"), [({"size": "10Gi"}, "qwen3-cache"), ({"existingClaim": "models"}, "models")]
)
def test_with_a_cache_no_pod_downloads(cache: Json, claim: str) -> None:
    made = template(cache=cache)
    assert "initContainers" not in made["spec"]
    assert volumes(made)["models"] == {"name": "models", "persistentVolumeClaim": {"claimName": claim}}
    assert mounts(made["spec"]["containers"][0])["models"]["readOnly"] is True


def test_a_model_on_a_volume_or_in_an_image() -> None:
    made = template({"pvc": {"claimName": "nfs", "subPath": "a/b"}})
    claim = {"claimName": "nfs", "readOnly": True}
    assert volumes(made)["model"] == {"name": "model", "persistentVolumeClaim": claim}
    container = made["spec"]["containers"][0]
    mount = {"name": "model", "mountPath": "/model", "readOnly": True, "subPath": "a/b"}
    assert mounts(container)["model"] == mount
    assert "--model=/model" in container["args"]

    made = template({"oci": {"image": "registry:5000/model:1"}})
    image = {"reference": "registry:5000/model:1", "pullPolicy": "IfNotPresent"}
    assert volumes(made)["model"] == {"name": "model", "image": image}
    assert mounts(made["spec"]["containers"][0])["model"]["readOnly"] is True

    with pytest.raises(NoModel, match="huggingFace, pvc or oci"):
        template({"s3": {"uri": "s3://bucket/a"}})


def test_gpus_are_asked_for_by_cuda_alone() -> None:
    given = {"requests": {"cpu": "2"}, "limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}
    two: Json = {"parallelism": {"tensor": 2}, "resources": given}
    assert worker(**two)["resources"] == {
        "requests": {"cpu": "2", "nvidia.com/gpu": "2"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
    }
    other = worker(gpuResourceName="example.com/gpu")["resources"]
    assert other == {"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}}
    assert worker(engine={"device": "cpu"})["resources"] == {}


def test_probes_are_quick_to_see_and_slow_to_kill() -> None:
    made = worker(probes={"startupTimeoutSeconds": 61})
    startup, readiness, liveness = made["startupProbe"], made["readinessProbe"], made["livenessProbe"]
    assert startup["httpGet"] == readiness["httpGet"] == {"path": "/ready", "port": "http"}
    assert (startup["periodSeconds"], startup["failureThreshold"]) == (2, 31)
    assert (readiness["periodSeconds"], readiness["failureThreshold"]) == (2, 2)
    assert liveness["httpGet"] == {"path": "/live", "port": "http"}
    assert [liveness[key] for key in ("periodSeconds", "timeoutSeconds", "failureThreshold")] == [10, 5, 6]
    assert made["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]
    assert made["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_pod_has_time_to_drain() -> None:
    assert template()["spec"]["terminationGracePeriodSeconds"] == 155
    made = template(rollout={"drainTimeoutSeconds": 600})["spec"]
    assert made["terminationGracePeriodSeconds"] == 635
    assert "--drain-timeout=600" in made["containers"][0]["args"]


def test_the_pod_is_locked_down() -> None:
    pod = template()["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["serviceAccountName"] == "qwen3"
    assert pod["enableServiceLinks"] is False


def test_writable_places() -> None:
    made = template(parallelism={"tensor": 4})
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}
    assert volumes(made)["shm"] == shm
    assert volumes(template(sharedMemory="256Mi"))["shm"]["emptyDir"]["sizeLimit"] == "256Mi"
    container = made["spec"]["containers"][0]
    where = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert where == {"/models": True, "/cache": False, "/tmp": False, "/dev/shm": False}
    assert all(value == "/cache" or value.startswith("/cache/") for value in environment(container).values())


def test_the_users_environment_comes_after_ours_and_wins() -> None:
    given = [{"name": "BASE", "value": "/fast"}, {"name": "HOME", "value": "$(BASE)/home"}]
    made = worker(env=given, envFrom=[{"secretRef": {"name": "more"}}])
    assert made["env"][-2:] == given
    assert [item["name"] for item in made["env"]].count("HOME") == 1
    assert made["envFrom"] == [{"secretRef": {"name": "more"}}]


def test_the_api_key_is_a_file() -> None:
    made = template(auth={"apiKeySecretRef": {"name": "keys", "key": "mine"}})
    assert volumes(made)["api-key"]["secret"] == {
        "secretName": "keys",
        "items": [{"key": "mine", "path": "api-key"}],
        "defaultMode": 0o440,
    }
    container = made["spec"]["containers"][0]
    assert environment(container)["MINISGL_API_KEY_FILE"] == "/etc/minisgl/api-key"
    assert mounts(container)["api-key"] == {"name": "api-key", "mountPath": "/etc/minisgl", "readOnly": True}
    assert "keys" not in " ".join(container["args"])


def test_scheduling_and_metadata_are_passed_on() -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    chosen = {**spread, "topologyKey": "host", "labelSelector": {"matchLabels": {"a": "b"}}}
    affinity: Json = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
    }
    made = template(
        scheduling={
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": affinity,
            "topologySpread": [spread, chosen],
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
        },
        podLabels={"team": "a"},
        podAnnotations={"note": "b"},
        imagePullSecrets=[{"name": "one"}, {"name": "two"}, {"name": "one"}],
    )
    pod = made["spec"]
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["affinity"] == affinity
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("high", "nvidia")
    own = {"serving.minisglang.io/service": "qwen3", "serving.minisglang.io/component": "worker"}
    assert pod["topologySpreadConstraints"] == [{**spread, "labelSelector": {"matchLabels": own}}, chosen]
    assert made["metadata"]["labels"].items() >= {"team": "a", **own}.items()
    assert made["metadata"]["annotations"] == {"note": "b"}
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


def test_the_pull_policy_is_for_every_container() -> None:
    pod = pod_template(IDENTITY, api.Spec.model_validate({"model": HUB}), "worker:1", pull_policy="Never")["spec"]
    assert [made["imagePullPolicy"] for made in (*pod["initContainers"], *pod["containers"])] == ["Never", "Never"]
    assert "imagePullPolicy" not in worker()
