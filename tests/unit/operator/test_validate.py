"""The API server's checks in Python: the same table as tests/integration/operator/test_crd_rules.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from minisgl_operator import api
from minisgl_operator.validate import InvalidFile, InvalidResource, load_service, validate
from support.rules import BAD, BAD_RULES, CHANGES, GOOD, UNKNOWN, Bad, rules_of_classes, service


def problems(document: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(InvalidResource) as caught:
        validate(document, old)
    return caught.value.problems


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_resource_is_refused_by_field(bad: Bad) -> None:
    (problem,) = problems(bad.document, bad.old)
    assert problem.startswith(f"{bad.field}: " if bad.field else "Invalid value: ")
    assert bad.message in problem


@pytest.mark.parametrize(
    "rule", [rule for _, rule in rules_of_classes()] + [api.NAME_RULE], ids=lambda rule: rule.message
)
def test_every_rule_has_a_bad_resource(rule: api.Rule) -> None:
    assert any(bad.message.endswith(rule.message) for bad in BAD_RULES)


def test_a_rule_about_a_change_needs_the_old_resource() -> None:
    changes = [bad for bad in BAD_RULES if bad.old is not None]
    for bad in changes:
        validate(bad.document)
    assert len(changes) > 1


@pytest.mark.parametrize("field", UNKNOWN)
def test_an_unknown_field_is_refused(field: str) -> None:
    assert problems(UNKNOWN[field]) == [f'unknown field "{field}"']


@pytest.mark.parametrize("name", GOOD)
def test_a_good_resource_is_accepted_and_fits_the_classes(name: str) -> None:
    given = copy.deepcopy(GOOD[name])
    resource = validate(given)
    assert given == GOOD[name]  # not changed
    assert validate(resource) == resource
    spec = api.Spec.model_validate(resource["spec"])
    least = {key: value for key, value in given["spec"].items() if value is not None}
    least = {key: value for key, value in least.items() if value != {"a": None}}
    assert api.Spec.model_validate(least) == spec  # the schema's defaults are the classes' own


@pytest.mark.parametrize("name", CHANGES)
def test_a_good_change_is_accepted(name: str) -> None:
    old, new = CHANGES[name]
    validate(new, old)


def test_defaults() -> None:
    spec = validate(service(engine={"dtype": "float16"}))["spec"]
    assert spec["model"]["huggingFace"]["revision"] == "main"
    assert spec["replicas"] == 1 and spec["suspend"] is False
    assert spec["engine"] == {
        "dtype": "float16",
        "device": "cuda",
        "quantization": "none",
        "kvCacheDtype": "auto",
        "cacheType": "radix",
    }
    assert spec["rollout"]["progressDeadlineSeconds"] == 2400
    assert not spec.keys() & {"cache", "env", "podLabels", "auth"}


def test_nulls_count_as_not_given_except_in_fragments() -> None:
    spec = validate(GOOD["nulls"])["spec"]
    assert spec["replicas"] == 1 and spec["engine"]["device"] == "cuda"
    assert spec["podLabels"] == {} and "cache" not in spec
    affinity = {"nodeAffinity": {"a": None}}
    assert validate(service(scheduling={"affinity": affinity}))["spec"]["scheduling"]["affinity"] == affinity


@pytest.mark.parametrize(
    "change", [{"apiVersion": "v1"}, {"apiVersion": f"{api.GROUP}/v2"}, {"kind": "Deployment"}, {"kind": None}]
)
def test_another_kind_is_refused(change: dict[str, Any]) -> None:
    (problem,) = problems(service() | change)
    assert problem.startswith(f"must be apiVersion {api.API_VERSION}, kind {api.KIND}; not ")
    assert str(next(iter(change.values()))) in problem


def test_metadata() -> None:
    assert problems(service() | {"metadata": {}}) == ["metadata.name: Required value"]
    without = service()
    del without["metadata"]
    assert problems(without) == ["metadata: Required value"]
    labels = {"name": "a", "labels": {"a": 1}}
    assert problems(service() | {"metadata": labels}) == [
        "metadata.labels.a: Invalid value: 1: must be of type string"
    ]


def test_all_problems_are_named_at_once() -> None:
    document = service(replicas=-1, modle={}, parallelism={"tensor": 0}, model={})
    assert problems(document) == [
        'unknown field "spec.modle"',
        "spec.parallelism.tensor: Invalid value: 0: should be greater than or equal to 1",
        "spec.replicas: Invalid value: -1: should be greater than or equal to 0",
    ]
    two = problems(service(model={}, cache={}))
    assert len(two) == 3  # the rules of model, of cache and of both
    with pytest.raises(InvalidResource, match=r"spec\.model: .*\n.*spec\.cache: "):
        validate(service(model={}, cache={}))


# --- the file ---

SERVICE = """\
apiVersion: serving.minisglang.io/v1alpha1
kind: MiniSGLangService
metadata: {name: qwen3}
spec:
  model: {huggingFace: {repo: Qwen/Qwen3-14B, revision: 2025-04-28}}
"""


def read(tmp_path: Path, text: str | bytes) -> Any:
    path = tmp_path / "service.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_service(path)


def failure(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(InvalidFile) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    prefix = f"{tmp_path / 'service.yaml'}: "
    assert message.startswith(prefix) and "\n" not in message
    return message.removeprefix(prefix)


def test_a_service_is_read_as_it_is(tmp_path: Path) -> None:
    file = read(tmp_path, f"---\n{SERVICE}---\n")
    assert file.secrets == {}
    assert file.service["metadata"] == {"name": "qwen3"}
    assert "replicas" not in file.service["spec"]
    revision = validate(file.service)["spec"]["model"]["huggingFace"]["revision"]
    assert revision == "2025-04-28"  # a date is text


def test_keys_are_text(tmp_path: Path) -> None:
    file = read(tmp_path, SERVICE + "  podLabels: {2: a, true: b}\n")
    assert file.service["spec"]["podLabels"] == {"2": "a", "true": "b"}


def test_secrets_are_decoded(tmp_path: Path) -> None:
    secret = "kind: Secret\nmetadata: {name: hub}\ndata: {token: aGZfMQ==, b: eA==}\nstringData: {b: y}\n"
    other = "kind: Secret\nmetadata: {name: empty}\n"
    file = read(tmp_path, f"{secret}---\n{SERVICE}---\n{other}")
    assert file.secrets == {"hub": {"token": "hf_1", "b": "y"}, "empty": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold one MiniSGLangService, and holds none"),
        (f"{SERVICE}---\n{SERVICE}", "must hold one MiniSGLangService, and holds 2"),
        ("kind: Deployment\n", "holds Deployment; only MiniSGLangService and Secret are read"),
        ("just text\n", "holds something without a kind; only"),
        ("kind: [a]\n", "holds ['a']; only"),
        ("kind: a\nspec: {a: [}\n", "not YAML: line 2: "),
        ("kind: a\n\tspec: a\n", "not YAML: line 2: "),
        ("kind: a\nspec:\n  a: 1\n  a: 2\n", 'not YAML: line 4: "a" again'),
        ("kind: \x00\n", "not YAML: "),
        (b"kind: \xff\xfe\n", "not YAML: it is not UTF-8 text"),
        ("kind: a\nspec: {a: .nan}\n", "has no form in JSON: "),
        ("kind: a\nspec: &a [*a]\n", "has no form in JSON: "),
        ("kind: a\nspec: !!binary aGk=\n", "has no form in JSON: "),
        ("kind: a\nspec: !!python/name:os.system x\n", "not YAML: line 2: "),
        ("kind: Secret\n", "a Secret must have metadata.name"),
        ("kind: Secret\nmetadata: a\n", "a Secret must have metadata.name"),
        ("kind: Secret\nmetadata: {name: a}\ndata: [a]\n", "a Secret must have metadata.name, and data"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {b: '?'}\n", "Secret a: data.b must be text in base64"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {b: 1}\n", "Secret a: data.b must be text in base64"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {b: /w==}\n", "Secret a: data.b must be text in base64"),
        ("kind: Secret\nmetadata: {name: a}\nstringData: {b: 1}\n", "Secret a: stringData.b must be a string"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert failure(tmp_path, text).startswith(message)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"none\.yaml: No such file or directory$"):
        load_service(tmp_path / "none.yaml")
    with pytest.raises(InvalidFile, match=r": Is a directory$"):
        load_service(tmp_path)
