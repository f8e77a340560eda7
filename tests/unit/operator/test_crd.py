"""The CustomResourceDefinition: complete, small, structural, and the same as the file under crds/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minisgl_operator import api
from minisgl_operator.crd import crd, render_crd, resource_schema
from support.rules import GOOD, rules_of_classes

FILE = Path(__file__).parents[3] / "crds" / "minisglangservices.yaml"


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that describes a value, with the value's path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}[]")


NODES = dict(nodes(resource_schema()))


def version() -> dict[str, Any]:
    (only,) = crd()["spec"]["versions"]
    assert isinstance(only, dict)
    return only


def test_the_file_is_what_the_classes_say() -> None:
    assert FILE.read_text() == render_crd(), "make it again: minisgl-operator crd > crds/minisglangservices.yaml"


def test_it_is_small_and_says_where_it_comes_from() -> None:
    text = render_crd()
    assert len(text.encode()) < 60_000
    assert "minisgl-operator crd > crds/minisglangservices.yaml" in text.partition("apiVersion")[0]
    assert yaml.safe_load(text) == crd()
    assert "&id" not in text  # no YAML aliases


def test_names_and_subresources() -> None:
    spec = crd()["spec"]
    assert crd()["metadata"]["name"] == "minisglangservices.serving.minisglang.io"
    assert spec["scope"] == "Namespaced"
    assert (spec["names"]["kind"], spec["names"]["shortNames"]) == ("MiniSGLangService", ["msgl"])
    assert version()["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    columns = version()["additionalPrinterColumns"]
    assert [each["name"] for each in columns if not each.get("priority")] == [
        *("Ready", "Reason", "Model", "TP", "Replicas", "Age")
    ]
    assert [each["name"] for each in columns if each.get("priority")] == ["URL", "Image", "Cache"]


@pytest.mark.parametrize("path", [column["jsonPath"] for column in api.PRINTER_COLUMNS])
def test_columns_show_fields_that_exist(path: str) -> None:
    field = path.replace('[?(@.type=="Ready")]', "[]")
    assert field in NODES or field == ".metadata.creationTimestamp"


@pytest.mark.parametrize("path", NODES)
def test_the_schema_is_structural(path: str) -> None:
    """No references, unions or null; every value has a type. The API server has its say elsewhere."""
    node = NODES[path]
    if node.get("x-kubernetes-int-or-string"):
        assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}] and "type" not in node
    else:
        assert isinstance(node["type"], str) and node["type"] != "null"
        assert "anyOf" not in node
    assert not node.keys() & {"$ref", "$defs", "title", "allOf", "oneOf", "nullable", "const"}
    assert node.get("additionalProperties") is not False
    assert node.get("default", "") is not None
    assert isinstance(node.get("exclusiveMinimum", True), bool)


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith(".spec")])
def test_every_list_map_and_string_of_the_spec_has_a_bound(path: str) -> None:
    node = NODES[path]
    if node.get("type") == "array":
        assert "maxItems" in node
    if "additionalProperties" in node:
        assert "maxProperties" in node
    if node.get("type") == "string" or "anyOf" in node:
        assert "maxLength" in node or "enum" in node
    if node.get("type") in ("integer", "number"):
        assert "enum" in node or {"minimum", "maximum"} <= node.keys()


def test_fields_keep_what_their_class_says() -> None:
    assert NODES[".spec.engine.memoryRatio"] == {
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "description": "Share of the free memory for model and KV pool.",
    }
    assert NODES[".spec.parallelism.tensor"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 16,
        "default": 1,
        "description": "GPUs that one replica is split over.",
    }
    assert NODES[".spec.scheduling.affinity"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert NODES[".spec.service"]["default"] == {"type": "ClusterIP", "port": 80}
    assert NODES[".spec.image"]["default"] == {}
    assert "default" not in NODES[".spec.cache"]
    assert NODES[".spec"]["required"] == ["model"]
    assert NODES[".spec.model.huggingFace.repo"]["description"].startswith("Repository on the Hugging Face Hub")
    assert NODES[".status.conditions"]["x-kubernetes-list-type"] == "map"
    assert NODES[".status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_every_rule_stands_in_the_schema() -> None:
    found = [
        (each["rule"], each["message"])
        for node in NODES.values()
        for each in node.get("x-kubernetes-validations", ())
    ]
    written = [rule for _, rule in rules_of_classes()] + [api.NAME_RULE]
    assert set(found) == {(rule.rule, rule.message) for rule in written}
    assert NODES[""]["x-kubernetes-validations"] == [api.NAME_RULE.model_dump()]


def test_the_good_resources_set_every_field_of_the_spec() -> None:
    """So that a field whose schema refuses everything cannot hide."""

    def given(value: Any, path: str) -> Iterator[str]:
        if path in NODES:
            yield path
        if isinstance(value, dict):
            for key, item in value.items():
                known = f"{path}.{key}" in NODES
                yield from given(item, f"{path}.{key}" if known else f"{path}[]")
        elif isinstance(value, list):
            for item in value:
                yield from given(item, f"{path}[]")

    spec = {path for path in NODES if path.startswith(".spec")}
    assert spec - {path for document in GOOD.values() for path in given(document, "")} == set()


def test_each_call_gives_new_data() -> None:
    crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].clear()
    assert "spec" in version()["schema"]["openAPIV3Schema"]["properties"]
