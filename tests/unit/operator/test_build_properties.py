"""Whatever the spec: children agree with each other, the worker reads its options, revisions follow the pods."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minisgl.server.parser import build_parser
from minisgl_operator import api
from minisgl_operator.build import engine_args, render
from minisgl_operator.build.identity import REVISION_LABEL, Identity
from minisgl_operator.build.image import Defaults, Reference, worker_image
from minisgl_operator.build.revision import revision_of
from minisgl_operator.build.template import pod_template

Json = dict[str, Any]

IDENTITY = Identity("qwen3", "team-a", "11111111-2222-3333-4444-555555555555")
DEFAULTS = Defaults("registry.example:5000/worker:1.0", "registry.example:5000/worker:1.0-cpu")

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
quantities = st.one_of(st.integers(1, 10**12), st.sampled_from(["1", "500m", "2Gi", "1.5G", "1e3"]))
texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=12)
variables = st.sampled_from(["A", "B", "HOME", "HF_TOKEN", "HF_ENDPOINT"])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """An object that has any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


sources = st.one_of(
    st.builds(
        lambda source: {"huggingFace": source},
        st.fixed_dictionaries(
            {"repo": st.sampled_from(["gpt2", "Qwen/Qwen3-14B"])},
            optional={
                "revision": st.sampled_from(["main", "v1", "refs/pr/1"]),
                "tokenSecretRef": st.fixed_dictionaries({"name": names}, optional={"key": names}),
            },
        ),
    ),
    st.builds(
        lambda source: {"pvc": source},
        st.fixed_dictionaries({"claimName": names}, optional={"subPath": st.just("models/a")}),
    ),
    st.just({"oci": {"image": "registry.example:5000/models/a:1"}}),
)
caches = st.one_of(
    st.fixed_dictionaries({"existingClaim": names}),
    st.fixed_dictionaries(
        {"size": quantities},
        optional={
            "storageClassName": names,
            "accessMode": st.sampled_from(["ReadWriteOnce", "ReadWriteMany"]),
            "reclaimPolicy": st.sampled_from(["Retain", "Delete"]),
        },
    ),
)
engines = some(
    device=st.sampled_from(["cuda", "cpu"]),
    dtype=st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
    quantization=st.sampled_from(["none", "fp8"]),
    kvCacheDtype=st.sampled_from(["auto", "fp8"]),
    maxSequenceLength=st.integers(2, 16777216),
    maxRunningRequests=st.integers(1, 65536),
    memoryRatio=st.floats(0, 1, exclude_min=True),
    attentionBackend=st.sampled_from(["torch", "torch,torch"]),
    cacheType=st.sampled_from(["radix", "naive"]),
    pageSize=st.integers(1, 1024),
    maxPrefillLength=st.integers(1, 16777216),
    extraArgs=st.sampled_from([[], ["--num-tokenizer", "2"], ["--log-level=debug"]]),
).filter(lambda engine: engine.get("device") != "cpu" or "fp8" not in engine.values())
environments = st.lists(
    st.one_of(
        st.fixed_dictionaries({"name": variables}, optional={"value": texts}),
        st.fixed_dictionaries(
            {"name": variables, "valueFrom": st.just({"fieldRef": {"fieldPath": "metadata.name"}})}
        ),
    ),
    max_size=4,
)
seen_fields = {
    "parallelism": some(tensor=st.integers(1, 16)),
    "engine": engines,
    "image": some(
        repository=st.sampled_from(["mirror.example:443/worker", "worker"]),
        tag=st.sampled_from(["1.0", "2"]),
        digest=st.sampled_from(["sha256:" + "a" * 64, "sha256:" + "b" * 64]),
        pullPolicy=st.sampled_from(["Always", "Never"]),
    ),
    "imagePullSecrets": st.lists(st.fixed_dictionaries({"name": names}), max_size=3),
    "resources": some(
        requests=st.dictionaries(st.sampled_from(["cpu", "memory"]), quantities),
        limits=st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), quantities),
    ),
    "gpuResourceName": st.sampled_from(["nvidia.com/gpu", "example.com/gpu"]),
    "sharedMemory": quantities,
    "scheduling": some(
        nodeSelector=st.dictionaries(names, names, max_size=2),
        tolerations=st.lists(st.sampled_from([{"operator": "Exists"}, {"key": "a"}]), max_size=2),
        affinity=st.sampled_from([{}, {"podAntiAffinity": {}}]),
        topologySpread=st.just([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
        priorityClassName=names,
        runtimeClassName=names,
    ),
    "env": environments,
    "envFrom": st.lists(st.builds(lambda name: {"secretRef": {"name": name}}, names), max_size=2),
    "podLabels": st.dictionaries(names, names, max_size=2),
    "podAnnotations": st.dictionaries(names, texts, max_size=2),
    "probes": some(startupTimeoutSeconds=st.integers(10, 86400)),
    "rollout": some(drainTimeoutSeconds=st.integers(0, 86400)),
    "auth": st.fixed_dictionaries({"apiKeySecretRef": st.fixed_dictionaries({"name": names})}),
}
rollouts = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["Auto", "Surge", "InPlace", "Recreate"]),
        "surgeTimeoutSeconds": st.integers(0, 86400),
        "minReadySeconds": st.integers(0, 3600),
        "progressDeadlineSeconds": st.integers(3601, 172800),
    }
)
unseen_fields = {
    "replicas": st.integers(0, 1000),
    "suspend": st.booleans(),
    "service": some(
        type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
        port=st.integers(1, 65535),
        annotations=st.dictionaries(names, texts, max_size=2),
    ),
    "networkPolicy": some(enabled=st.booleans(), allowFrom=st.just([{"ipBlock": {"cidr": "10.0.0.0/8"}}])),
}


@st.composite
def bodies(draw: st.DrawFn) -> Json:
    """A spec that the CRD lets through, as the user writes it."""
    model = draw(sources)
    if draw(st.booleans()):
        model["servedName"] = draw(st.from_regex(r"\A[^$\s]{1,30}\Z"))
    body = {"model": model, **draw(some(**seen_fields)), **draw(some(**unseen_fields))}
    if "huggingFace" in model and draw(st.booleans()):
        body["cache"] = draw(caches)
    return body


def spec_of(body: Json) -> api.Spec:
    return api.Spec.model_validate(body)


def template_for(spec: api.Spec) -> Json:
    return pod_template(IDENTITY, spec, worker_image(spec, DEFAULTS, None), pull_policy=spec.image.pull_policy)


@given(bodies())
def test_children_agree_on_names_labels_and_owner(body: Json) -> None:
    spec = spec_of(body)
    made = render.children(IDENTITY, spec, DEFAULTS)
    assert json.loads(json.dumps(made)) == made
    kinds = [child["kind"] for child in made]
    assert len(kinds) == len(set(kinds))
    common = {
        "app.kubernetes.io/name": "minisglang",
        "app.kubernetes.io/instance": "qwen3",
        "app.kubernetes.io/managed-by": "minisgl-operator",
        "serving.minisglang.io/service": "qwen3",
    }
    for child in made:
        assert child["metadata"]["namespace"] == "team-a"
        assert child["metadata"]["labels"] == common
        kept = child["kind"] == "PersistentVolumeClaim" and body["cache"].get("reclaimPolicy") != "Delete"
        owners = child["metadata"].get("ownerReferences", [])
        assert [owner["uid"] for owner in owners] == ([] if kept else [IDENTITY.uid])
        assert all(owner["controller"] for owner in owners)

    by_kind = {child["kind"]: child for child in made}
    pod = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert pod.items() >= common.items()
    assert pod[REVISION_LABEL] == revision_of(spec)
    selectors = [by_kind["Deployment"]["spec"]["selector"]["matchLabels"], by_kind["Service"]["spec"]["selector"]]
    if "NetworkPolicy" in by_kind:
        selectors.append(by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    if "PodDisruptionBudget" in by_kind:
        selectors.append(by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    for selector in selectors:
        assert pod.items() >= selector.items()
        assert REVISION_LABEL not in selector
        if "Job" in by_kind:
            download = by_kind["Job"]["spec"]["template"]["metadata"]["labels"]
            assert not download.items() >= selector.items()


@given(bodies())
def test_pods_are_whole_and_locked_down(body: Json) -> None:
    made = render.children(IDENTITY, spec_of(body), DEFAULTS)
    for template in (child["spec"]["template"] for child in made if child["kind"] in ("Deployment", "Job")):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(volumes) == len(set(volumes))
        used = set()
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            used |= {mount["name"] for mount in container["volumeMounts"]}
            variables = [variable["name"] for variable in container["env"]]
            assert len(variables) == len(set(variables))
            gpus = container["resources"].get("limits", {}).get(body.get("gpuResourceName", "nvidia.com/gpu"))
            if container["name"] == "download":
                assert gpus is None
            elif body.get("engine", {}).get("device") != "cpu":
                assert gpus == str(body.get("parallelism", {}).get("tensor", 1))
        assert used == set(volumes)


@given(bodies())
def test_the_worker_reads_every_option_as_it_was_meant(body: Json) -> None:
    spec = spec_of(body)
    args = template_for(spec)["spec"]["containers"][0]["args"]
    options = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    assert len(options) == len(set(options))
    read = build_parser().parse_args(args)
    engine = spec.engine
    assert read.model.startswith("/model")
    assert read.served_model_name == body["model"].get("servedName", "qwen3")
    assert (read.host, read.port) == ("0.0.0.0", 8000)
    assert (read.device, read.dtype, read.tp) == (engine.device, engine.dtype, spec.parallelism.tensor)
    assert (read.quantization, read.kv_cache_dtype) == (engine.quantization, engine.kv_cache_dtype)
    assert read.cache == engine.cache_type
    assert read.drain_grace == engine_args.DRAIN_GRACE_SECONDS
    assert read.drain_timeout == spec.rollout.drain_timeout_seconds
    unset = build_parser().parse_args(["--model", "/model"])
    for option, value in {
        "max_seq_len": engine.max_sequence_length,
        "max_running_requests": engine.max_running_requests,
        "memory_ratio": engine.memory_ratio,
        "page_size": engine.page_size,
        "max_prefill_length": engine.max_prefill_length,
    }.items():
        assert getattr(read, option) == (getattr(unset, option) if value is None else value), option


@given(bodies(), st.data())
def test_what_no_pod_sees_is_no_new_revision(body: Json, data: st.DataObject) -> None:
    other = {**body, **data.draw(st.fixed_dictionaries(unseen_fields))}
    other["rollout"] = {**body.get("rollout", {}), **data.draw(rollouts)}
    if "size" in body.get("cache", {}):
        other["cache"] = data.draw(caches.filter(lambda cache: "size" in cache))
    assert revision_of(spec_of(body)) == revision_of(spec_of(other))
    assert template_for(spec_of(body)) == template_for(spec_of(other))


@given(bodies())
def test_defaults_that_are_written_out_are_no_new_revision(body: Json) -> None:
    spec = spec_of(body)
    stored = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert revision_of(spec_of(stored)) == revision_of(spec)
    assert template_for(spec_of(stored)) == template_for(spec)


@given(bodies(), st.data())
def test_pods_that_differ_have_different_revisions(body: Json, data: st.DataObject) -> None:
    field, values = data.draw(st.sampled_from([*seen_fields.items(), ("model", sources), ("cache", caches)]))
    other = {**body, field: data.draw(values)}
    if "huggingFace" not in other["model"]:
        other.pop("cache", None)
    one, two = spec_of(body), spec_of(other)
    assume(template_for(one) != template_for(two))
    assert revision_of(one) != revision_of(two)


@given(bodies())
def test_building_leaves_the_spec_alone_and_gives_fresh_objects(body: Json) -> None:
    spec = spec_of(body)
    before = spec.model_dump_json()
    first = render.children(IDENTITY, spec, DEFAULTS)
    kept = json.loads(json.dumps(first))
    _spoil(first)
    assert spec.model_dump_json() == before
    assert render.children(IDENTITY, spec, DEFAULTS) == kept


def _spoil(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _spoil(item)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:
            _spoil(item)
        value.append("spoiled")


@given(bodies(), st.sampled_from(["worker:1", "r.example:5000/a/worker:1@sha256:" + "c" * 64, "localhost:5000/w"]))
def test_a_pinned_image_stays(body: Json, default: str) -> None:
    spec = spec_of(body)
    pinned = worker_image(spec, Defaults(default, default), None)
    newer = Defaults("elsewhere/worker:9", "elsewhere/worker:9-cpu")
    assert worker_image(spec, newer, pinned) == pinned
    assert str(Reference.parse(pinned)) == pinned


@pytest.mark.parametrize("option", ["model", "served-model-name", "host", "port", "tp", "device", "drain-timeout"])
def test_options_that_are_generated_are_closed_to_users(option: str) -> None:
    assert option in api.OWNED_FLAGS
