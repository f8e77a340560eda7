"""The objects beside the pod, one by one, and the examples as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from minisgl_operator import api
from minisgl_operator.build import cache, network, policy, render, strategy
from minisgl_operator.build.deployment import deployment
from minisgl_operator.build.identity import Identity, metadata, selector_text
from minisgl_operator.build.image import Defaults
from minisgl_operator.build.revision import controller_revision, revision_of, template_of
from minisgl_operator.build.template import pod_template

Json = dict[str, Any]
IDENTITY = Identity("qwen3", "team-a", "uid-1")
DEFAULTS = Defaults("worker:1", "worker:1-cpu", operator_namespace="minisgl-system")
HUB = {"huggingFace": {"repo": "Qwen/Qwen3-14B"}}
OWN = {"serving.minisglang.io/service": "qwen3", "serving.minisglang.io/component": "worker"}
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def spec(**fields: Any) -> api.Spec:
    return api.Spec.model_validate({"model": HUB, **fields})


def test_identity_of_a_resource_and_its_children() -> None:
    body = {"metadata": {"name": "qwen3", "namespace": "team-a", "uid": "uid-1"}}
    assert Identity.of(body) == IDENTITY
    assert Identity.of({"metadata": {"name": "a"}}) == Identity("a", "default", "")
    assert metadata(IDENTITY)["ownerReferences"] == [
        {
            "apiVersion": "serving.minisglang.io/v1alpha1",
            "kind": "MiniSGLangService",
            "name": "qwen3",
            "uid": "uid-1",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    assert "ownerReferences" not in metadata(IDENTITY, owned=False)
    assert "ownerReferences" not in metadata(Identity("a", "default", ""))
    assert selector_text(IDENTITY) == ",".join(f"{key}={value}" for key, value in OWN.items())


def test_a_claim_is_made_for_a_size_only() -> None:
    made = cache.claim(IDENTITY, spec(cache={"size": "10Gi", "accessMode": "ReadWriteMany"}))
    assert made is not None
    assert made["metadata"]["name"] == "qwen3-cache"
    assert made["spec"] == {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}}
    fast = cache.claim(IDENTITY, spec(cache={"size": 1, "storageClassName": "fast"}))
    assert fast is not None
    assert fast["spec"]["storageClassName"] == "fast"
    existing = spec(cache={"existingClaim": "models"})
    assert cache.claim(IDENTITY, existing) is None
    assert cache.needs_cache(existing)
    assert not cache.managed(existing)
    assert not cache.needs_cache(spec())
    assert cache.claim_name(IDENTITY, spec()) is None
    assert cache.claim_name(IDENTITY, api.Spec.model_validate({"model": {"pvc": {"claimName": "nfs"}}})) == "nfs"


@pytest.mark.parametrize(("reclaim", "owned"), [("Retain", False), ("Delete", True)])
def test_only_a_claim_to_delete_has_an_owner(reclaim: str, owned: bool) -> None:
    made = cache.claim(IDENTITY, spec(cache={"size": "1Gi", "reclaimPolicy": reclaim}))
    assert made is not None
    assert ("ownerReferences" in made["metadata"]) is owned


def test_the_download_job() -> None:
    secret = {"name": "hub", "key": "HF_TOKEN"}
    asked = api.Spec.model_validate(
        {
            "model": {"huggingFace": {"repo": "Qwen/Qwen3-14B", "tokenSecretRef": secret}},
            "cache": {"size": "10Gi"},
            "parallelism": {"tensor": 2},
            "scheduling": {"nodeSelector": {"zone": "a"}, "tolerations": [{"operator": "Exists"}]},
            "auth": {"apiKeySecretRef": {"name": "keys"}},
        }
    )
    job = cache.download_job(IDENTITY, asked, "worker:1", "claim-uid", pull_policy="Never")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"zone": "a"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    (container,) = pod["containers"]
    assert container["imagePullPolicy"] == "Never"
    assert container["args"][-1] == "--into=/models/Qwen/Qwen3-14B/main"
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}} in container["env"]
    assert "limits" not in container["resources"]
    claim = {"claimName": "qwen3-cache"}
    assert pod["volumes"][0] == {"name": "models", "persistentVolumeClaim": claim}
    assert [volume["name"] for volume in pod["volumes"]] == ["models", "cache", "tmp"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["serving.minisglang.io/component"] == "download"
    hopeless, disrupted = job["spec"]["podFailurePolicy"]["rules"]
    assert hopeless["action"] == "FailJob"
    exits = {"containerName": container["name"], "operator": "In", "values": [2, 10, 11]}
    assert hopeless["onExitCodes"] == exits
    assert disrupted["action"] == "Ignore"


def test_another_model_or_volume_is_another_job() -> None:
    def name(uid: str = "u", **source: str) -> str:
        given = {"huggingFace": {"repo": "a/b", **source}}
        asked = api.Spec.model_validate({"model": given, "cache": {"size": 1}})
        made: str = cache.download_job(IDENTITY, asked, "worker:1", uid)["metadata"]["name"]
        return made

    assert name() == name(revision="main")
    assert len({name(), name("v"), name(revision="v1"), name(repo="a/c"), name(repo="a", revision="b/main")}) == 5
    assert len(Identity("n" * api.MAX_NAME, "a", "").name + name().removeprefix("qwen3")) <= 63
    with pytest.raises(ValueError, match="without a cache"):
        cache.download_job(IDENTITY, spec(), "worker:1", "u")


def test_a_kept_template_is_used_as_it_is() -> None:
    asked = spec(replicas=3, rollout={"minReadySeconds": 5})
    template = pod_template(IDENTITY, asked, "worker:0")
    kept = controller_revision(IDENTITY, revision_of(asked), 7, template)
    assert kept["metadata"]["name"] == f"qwen3-{revision_of(asked)}"
    assert kept["revision"] == 7
    assert template_of(kept) == template
    strategy_used = strategy.in_place()
    made = deployment(
        IDENTITY, asked, template_of(kept), "abc", strategy=strategy_used, replicas=2, annotations={"a": "b"}
    )
    assert made["metadata"]["annotations"] == {"a": "b"}
    body = made["spec"]
    assert body["replicas"] == 2
    assert body["selector"] == {"matchLabels": OWN}
    assert body["strategy"] == strategy_used
    assert (body["minReadySeconds"], body["progressDeadlineSeconds"]) == (5, 2400)
    assert body["template"]["metadata"]["labels"]["serving.minisglang.io/revision"] == "abc"
    assert body["template"]["spec"] == template["spec"]
    assert "serving.minisglang.io/revision" not in template["metadata"]["labels"]


def test_strategies() -> None:
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    in_place = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}

    def first(chosen: str, replicas: int) -> Json:
        return strategy.first_choice(spec(replicas=replicas, rollout={"strategy": chosen}))

    assert first("Auto", 1) == first("Surge", 1) == first("Surge", 2) == surge
    assert first("Auto", 2) == first("InPlace", 1) == in_place
    assert first("Recreate", 2) == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("service", "url"),
    [({}, "http://qwen3.team-a.svc/v1"), ({"port": 8080}, "http://qwen3.team-a.svc:8080/v1")],
)
def test_the_service_and_its_url(service: Json, url: str) -> None:
    asked = spec(service={**service, "type": "NodePort", "annotations": {"a": "b"}})
    assert network.url(IDENTITY, asked) == url
    made = network.service(IDENTITY, asked)
    assert made["metadata"]["annotations"] == {"a": "b"}
    port = {"name": "http", "port": service.get("port", 80), "targetPort": "http", "protocol": "TCP"}
    assert made["spec"] == {"type": "NodePort", "selector": OWN, "ports": [port]}


def test_the_network_policy_lets_in_whom_it_should() -> None:
    assert network.network_policy(IDENTITY, spec(), DEFAULTS) is None
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minisgl-system"}}}

    def peers(defaults: Defaults = DEFAULTS, **fields: Any) -> list[Json]:
        made = network.network_policy(IDENTITY, spec(networkPolicy={"enabled": True, **fields}), defaults)
        assert made is not None
        assert made["spec"]["podSelector"] == {"matchLabels": OWN}
        assert made["spec"]["policyTypes"] == ["Ingress"]
        (rule,) = made["spec"]["ingress"]
        assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
        given: list[Json] = rule["from"]
        return given

    assert peers() == [{"podSelector": {}}, operator]
    block = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert peers(allowFrom=[block]) == [block, operator]
    assert peers(Defaults("w", "c")) == [{"podSelector": {}}]


def test_a_budget_needs_two_replicas() -> None:
    assert policy.disruption_budget(IDENTITY, spec(replicas=1)) is None
    made = policy.disruption_budget(IDENTITY, spec(replicas=2))
    assert made is not None
    assert made["spec"]["maxUnavailable"] == 1
    assert made["spec"]["selector"] == {"matchLabels": OWN}
    assert policy.service_account(IDENTITY)["automountServiceAccountToken"] is False


def test_children_come_in_the_order_of_their_needs() -> None:
    everything = spec(replicas=2, cache={"size": "1Gi"}, networkPolicy={"enabled": True})
    made = render.children(IDENTITY, everything, DEFAULTS)
    assert [child["kind"] for child in made] == [
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "Service",
        "PodDisruptionBudget",
        "ControllerRevision",
        "Job",
        "Deployment",
    ]
    least = [child["kind"] for child in render.children(IDENTITY, spec(), DEFAULTS)]
    assert least == ["ServiceAccount", "Service", "ControllerRevision", "Deployment"]
    asleep = render.children(IDENTITY, spec(suspend=True), DEFAULTS)
    assert asleep[-1]["spec"]["replicas"] == 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_render(path: Path) -> None:
    for body in yaml.safe_load_all(path.read_text()):
        assert (body["apiVersion"], body["kind"]) == (api.API_VERSION, api.KIND)
        asked = api.Spec.model_validate(body["spec"])
        made = render.children(Identity.of(body), asked, DEFAULTS)
        worker = made[-1]["spec"]["template"]["spec"]["containers"][0]
        assert worker["image"] == ("worker:1-cpu" if asked.engine.device == "cpu" else "worker:1")


def test_there_are_examples() -> None:
    assert {"smollm2.yaml", "qwen3-14b.yaml"} <= {path.name for path in EXAMPLES}
