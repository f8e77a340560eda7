"""Good and bad resources. One table for the validation in Python and for the API server, so that the two agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minisgl_operator import api

Document = dict[str, Any]

HUB: Document = {"huggingFace": {"repo": "Qwen/Qwen3-14B"}}
S3: Document = {"s3": {"uri": "s3://bucket/model"}}
CLAIM: Document = {"pvc": {"claimName": "models"}}


def service(name: str = "qwen3", /, **spec: Any) -> Document:
    """A resource with a model from the hub, where `spec` has no other."""
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": name},
        "spec": {"model": HUB} | spec,
    }


@dataclass(frozen=True)
class Bad:
    """A resource that is refused, in place of `old` where that is given, with a message that names the field."""

    name: str
    document: Document
    field: str
    message: str
    old: Document | None = None


def broken(name: str, field: str, rule: api.Rule, document: Document, old: Document | None = None) -> Bad:
    return Bad(name, document, field, f"Invalid value: {rule.message}", old)


def rules_of_classes() -> Iterator[tuple[type[api.Fields], api.Rule]]:
    """Every rule in api.py, with the class that it stands in; the rule of the name stands beside them."""
    pending = [api.Fields]
    while pending:
        pending += (each := pending.pop()).__subclasses__()
        yield from ((each, rule) for rule in each.rules)


def _rule_cases() -> Iterator[Bad]:
    for name in ("q" * 41, "3qwen", "qwen.3"):
        yield broken(f"name {name[:6]}", "", api.NAME_RULE, service(name))

    (one_source,) = api.Model.rules
    yield broken("no source", "spec.model", one_source, service(model={}))
    yield broken("only a name", "spec.model", one_source, service(model={"servedName": "qwen3"}))
    yield broken("two sources", "spec.model", one_source, service(model=HUB | CLAIM))

    (inside,) = api.ClaimSource.rules
    for path in ("..", "../model", "a/../../b", "a/.."):
        yield broken(
            f"path {path}", "spec.model.pvc", inside, service(model={"pvc": {"claimName": "m", "subPath": path}})
        )

    one_volume, no_class = api.Cache.rules
    both: Document = {"size": "10Gi", "existingClaim": "models"}
    yield broken("two volumes", "spec.cache", one_volume, service(cache=both))
    yield broken("no volume", "spec.cache", one_volume, service(cache={}))
    with_class = {"existingClaim": "models", "storageClassName": "fast"}
    yield broken("class of an existing claim", "spec.cache", no_class, service(cache=with_class))

    owned_flags, no_tls, fp8 = api.Engine.rules
    options = [f"--{flag}" for flag in api.OWNED_FLAGS]
    for option in (*options, "-h", "--port=80", "--tp=2"):
        engine = {"extraArgs": ["--log-level", "debug", option]}
        yield broken(f"extraArgs {option}", "spec.engine", owned_flags, service(engine=engine))
    engine = {"extraArgs": ["--ssl-certfile=/certificates/tls.crt"]}
    yield broken("extraArgs with TLS", "spec.engine", no_tls, service(engine=engine))
    for field in ("quantization", "kvCacheDtype"):
        yield broken(f"{field} on a CPU", "spec.engine", fp8, service(engine={"device": "cpu", field: "fp8"}))

    (deadline,) = api.Rollout.rules
    late = {"progressDeadlineSeconds": 60, "minReadySeconds": 60}
    yield broken("deadline", "spec.rollout", deadline, service(rollout=late))
    yield broken("deadline by default", "spec.rollout", deadline, service(rollout={"minReadySeconds": 2400}))

    (replicas,) = api.Autoscaling.rules
    turned = {"minReplicas": 3, "maxReplicas": 2}
    yield broken("autoscaling", "spec.autoscaling", replicas, service(autoscaling=turned))

    (one_value,) = api.EnvVar.rules
    twice = {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    yield broken("two values", "spec.env[0]", one_value, service(env=[twice]))

    cached, immutable, env, labels, annotations = api.Spec.rules
    yield broken("cache of a claim", "spec", cached, service(model=CLAIM, cache={"size": "10Gi"}))
    yield broken(
        "cache of an image", "spec", cached, service(model={"oci": {"image": "a"}}, cache={"size": "1Gi"})
    )
    for name in ("MINISGL_API_KEY", "MINISGL_API_KEY_FILE"):
        yield broken(f"env {name}", "spec", env, service(env=[{"name": "A"}, {"name": name, "value": "x"}]))
    for key in (f"{api.GROUP}/service", "app.kubernetes.io/name"):
        yield broken(f"label {key}", "spec", labels, service(podLabels={"team": "a", key: "x"}))
    for key in (f"{api.GROUP}/revision", "controller.kubernetes.io/pod-deletion-cost"):
        yield broken(f"annotation {key}", "spec", annotations, service(podAnnotations={key: "1"}))

    size = {"size": "10Gi"}
    hub, s3 = service(cache=size), service(model=S3, cache=size)
    others: dict[str, tuple[Document, Document]] = {
        "repo": (hub, service(cache=size, model={"huggingFace": {"repo": "Qwen/Qwen3-8B"}})),
        "revision": (hub, service(cache=size, model={"huggingFace": HUB["huggingFace"] | {"revision": "v2"}})),
        "hub to s3": (hub, s3),
        "s3 to hub": (s3, hub),
        "uri": (s3, service(cache=size, model={"s3": {"uri": "s3://bucket/other"}})),
        "hub to claim, without the cache": (hub, service(model=CLAIM)),
    }
    for name, (old, new) in others.items():
        yield broken(f"source: {name}", "spec", immutable, new, old)


def _schema_cases() -> Iterator[Bad]:
    no_spec = service()
    del no_spec["spec"]
    yield Bad("no spec", no_spec, "spec", "Required value")
    no_model = service()
    no_model["spec"] = {}
    yield Bad("no model", no_model, "spec.model", "Required value")
    yield Bad("null model", service(model=None), "spec.model", "Required value")
    yield Bad("item without a name", service(env=[{"name": "A"}, {}]), "spec.env[1].name", "Required value")
    yield Bad("null item", service(env=[None]), "spec.env[0]", "must be of type object")

    for tensor, bound in ((0, "greater than or equal to 1"), (17, "less than or equal to 16")):
        document = service(parallelism={"tensor": tensor})
        yield Bad(f"tensor {tensor}", document, "spec.parallelism.tensor", f"should be {bound}")
    devices = 'Unsupported value: "tpu": supported values: "cuda", "cpu"'
    yield Bad("device", service(engine={"device": "tpu"}), "spec.engine.device", devices)

    yield Bad("replicas in words", service(replicas="two"), "spec.replicas", "must be of type integer")
    yield Bad("half a replica", service(replicas=1.5), "spec.replicas", "must be of type integer")
    yield Bad("suspend in words", service(suspend="yes"), "spec.suspend", "must be of type boolean")
    yield Bad("engine as a list", service(engine=[]), "spec.engine", "must be of type object")
    yield Bad(
        "args as text", service(engine={"extraArgs": "-v"}), "spec.engine.extraArgs", "must be of type array"
    )
    yield Bad("label as a number", service(podLabels={"a": 1}), "spec.podLabels.a", "must be of type string")
    yield Bad("half a byte", service(sharedMemory=0.5), "spec.sharedMemory", "must be of type integer")

    yield Bad("-1 replicas", service(replicas=-1), "spec.replicas", "should be greater than or equal to 0")
    yield Bad("replicas", service(replicas=1001), "spec.replicas", "should be less than or equal to 1000")
    none, all_of_two = {"memoryRatio": 0}, {"memoryRatio": 2}
    yield Bad("no memory", service(engine=none), "spec.engine.memoryRatio", "should be greater than 0")
    yield Bad("memory", service(engine=all_of_two), "spec.engine.memoryRatio", "should be less than or equal to 1")
    yield Bad(
        "negative size", service(sharedMemory=-1), "spec.sharedMemory", "should be greater than or equal to 0"
    )

    digest = service(image={"digest": "sha256:123"})
    yield Bad("digest", digest, "spec.image.digest", "should match '^sha256:[a-f0-9]{64}$'")
    repo = "spec.model.huggingFace.repo"
    for name, value, message in (
        ("space", "a b", "should match"),
        ("newline", "a/b\n", "should match"),
        ("empty", "", "should be at least 1 chars long"),
        ("long", "a" * 201, "Too long: may not be more than 200"),
    ):
        yield Bad(f"repo: {name}", service(model={"huggingFace": {"repo": value}}), repo, message)
    limits = {"limits": {"cpu": "4 cores"}}
    yield Bad("quantity", service(resources=limits), "spec.resources.limits.cpu", "should match")
    secrets = [{"name": "a"}] * 17
    yield Bad("secrets", service(imagePullSecrets=secrets), "spec.imagePullSecrets", "must have at most 16 items")
    many = {f"key{index}": "x" for index in range(65)}
    yield Bad("labels", service(podLabels=many), "spec.podLabels", "must have at most 64 items")


BAD_RULES = tuple(_rule_cases())
BAD = (*BAD_RULES, *_schema_cases())

UNKNOWN: dict[str, Document] = {
    "spec.modle": service(modle=HUB),
    "spec.engine.pageSizes": service(engine={"pageSizes": 16}),
    "spec.env[1].valeu": service(env=[{"name": "A"}, {"name": "B", "valeu": "x"}]),
    "spec.model.huggingFace.tokenSecretRef.namespace": service(
        model={"huggingFace": {"repo": "a", "tokenSecretRef": {"name": "a", "namespace": "b"}}}
    ),
    "metadata.label": service() | {"metadata": {"name": "qwen3", "label": {}}},
    "specs": service() | {"specs": {}},
}
"""Resources with a field that the schema does not have, by that field."""

_TOKEN = {"name": "hub", "key": "token"}
_PEER = {"namespaceSelector": {"matchLabels": {"a": "b"}}}
_FULL = service(
    model={
        "huggingFace": {"repo": "Qwen/Qwen3-14B", "revision": "refs/pr/1", "tokenSecretRef": _TOKEN},
        "servedName": "q",
    },
    cache={"size": "40Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany", "reclaimPolicy": "Delete"},
    replicas=2,
    parallelism={"tensor": 2},
    engine={
        "device": "cuda",
        "dtype": "bfloat16",
        "quantization": "fp8",
        "kvCacheDtype": "fp8",
        "maxSequenceLength": 8192,
        "maxRunningRequests": 64,
        "memoryRatio": 0.85,
        "attentionBackend": "fa,fi",
        "cacheType": "naive",
        "pageSize": 16,
        "cudaGraphMaxBatch": 32,
        "maxPrefillLength": 2048,
        "extraArgs": ["--log-level", "debug", "--tp-backend", "--porter"],
    },
    image={"repository": "r.example/w", "tag": "1", "digest": f"sha256:{'a' * 64}", "pullPolicy": "Always"},
    imagePullSecrets=[{"name": "registry"}],
    resources={"requests": {"cpu": 2, "memory": "16Gi"}, "limits": {"memory": "1e10", "cpu": "500m"}},
    gpuResourceName="amd.com/gpu",
    sharedMemory="2Gi",
    scheduling={
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"anything": [1, None]}},
        "topologySpread": [{"maxSkew": 1}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    },
    env=[{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    envFrom=[{"configMapRef": {"name": "a"}}],
    podLabels={"team": "a"},
    podAnnotations={"note": "b"},
    probes={"startupTimeoutSeconds": 600},
    rollout={
        "strategy": "InPlace",
        "surgeTimeoutSeconds": 30,
        "minReadySeconds": 5,
        "drainTimeoutSeconds": 600,
        "progressDeadlineSeconds": 3600,
    },
    autoscaling={
        "minReplicas": 2,
        "maxReplicas": 2,
        "metric": "kvUsage",
        "target": 80,
        "provider": "HPA",
        "behavior": {"scaleDown": {}},
    },
    auth={"apiKeySecretRef": {"name": "key", "key": "api"}},
    tls={"secretName": "tls"},
    networkPolicy={"enabled": True, "allowFrom": [_PEER]},
    service={"type": "NodePort", "port": 8080, "annotations": {"a": "b"}},
    monitoring={"podMonitor": True, "labels": {"a": "b"}},
    gateway={"inferencePool": True, "parentRef": {"name": "gateway"}},
    suspend=True,
)

GOOD: dict[str, Document] = {
    "least": service(),
    "full": _FULL,
    "claim": service(model={"pvc": {"claimName": "models", "subPath": "qwen/..3"}}),
    "s3": service(model={"s3": {"uri": "s3://b/m", "endpoint": "https://s3", "secretRef": {"name": "s3"}}}),
    "image": service(model={"oci": {"image": "r.example/qwen3:1"}}),
    "existing claim": service(cache={"existingClaim": "models"}),
    "longest name": service("q" * api.MAX_NAME),
    "nulls": service(engine=None, cache=None, replicas=None, podLabels={"a": None}),
}
"""Resources that are accepted. Together they set every field of the spec."""

CHANGES: dict[str, tuple[Document, Document]] = {
    "another source without a cache": (service(), service(model=CLAIM)),
    "another source with an existing claim": (
        service(cache={"existingClaim": "models"}),
        service(cache={"existingClaim": "models"}, model=S3),
    ),
    "the same source said in full": (
        service(cache={"size": "1Gi"}),
        service(
            cache={"size": "2Gi"}, model={"huggingFace": HUB["huggingFace"] | {"revision": "main"}}, replicas=3
        ),
    ),
}
"""Changes that are accepted, from one to the other."""
