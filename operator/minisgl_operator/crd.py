"""The CustomResourceDefinition, made from the classes of api.py.

A CRD's schema is a dialect of JSON Schema: no references, no null as a type, no `additionalProperties: false`
(the API server knows itself what is unknown), rules in CEL and merge keys beside the types. Pydantic says what it
can; what is left to do here is that dialect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from minisgl_operator import api

HEADER = """\
# Made from operator/minisgl_operator/api.py. Do not edit; make it again with
#   minisgl-operator crd > crds/minisglangservices.yaml
"""


class _Dialect(GenerateJsonSchema):
    """Pydantic's JSON Schema with the rules of each class, and without what a CRD cannot say."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        result.pop("title", None)
        result.pop("additionalProperties", None)
        if rules := schema["cls"].rules:
            result["x-kubernetes-validations"] = _validations(rules)
        return result

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # an optional field is left out, never null

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Scalars keep their default, and an object's holds those of its fields.

        It could be empty, as the API server fills in nested defaults, but a default is checked by the object's
        rules before that. Lists and maps have none, so that an object holds nothing that says nothing.
        """
        inner = dict(self.generate_inner(schema["schema"]))
        match schema.get("default"):
            case api.Fields() as fields:
                dumped = fields.model_dump(by_alias=True, exclude_none=True)
                inner["default"] = {key: value for key, value in dumped.items() if value not in ([], {})}
            case bool() | int() | float() | str() as scalar:
                inner["default"] = scalar
        return inner


def crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition, as new plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.SINGULAR,
                "shortNames": [api.SHORT_NAME],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [dict(column) for column in api.PRINTER_COLUMNS],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": resource_schema()},
                }
            ],
        },
    }


def resource_schema() -> dict[str, Any]:
    """The structural schema of the whole resource."""
    status = _structural(api.Status)
    status["properties"]["conditions"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
    return {
        "type": "object",
        "description": "Worker pods that serve one model by the OpenAI API, and the Service in front of them.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(api.Spec),
            "status": status,
        },
        "x-kubernetes-validations": _validations([api.NAME_RULE]),
    }


def render_crd() -> str:
    """The CustomResourceDefinition as the text of its file under crds/."""
    return HEADER + yaml.safe_dump(crd(), sort_keys=False, width=110, allow_unicode=True)


def _validations(rules: Iterable[api.Rule]) -> list[dict[str, str]]:
    return [{"rule": rule.rule, "message": rule.message} for rule in rules]


def _structural(model: type[api.Fields]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, schema_generator=_Dialect)
    definitions = schema.pop("$defs", {})
    result: dict[str, Any] = _inline(schema, definitions)
    return result


def _inline(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A copy of `node` with each reference replaced by what it names; what stands beside a reference wins."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, Mapping):
        return node
    if reference := node.get("$ref"):
        node = {**definitions[reference.removeprefix("#/$defs/")], **node}
    result = {key: _inline(value, definitions) for key, value in node.items() if key != "$ref"}
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        # OpenAPI 3.0 has the limit in one key, and whether it is itself allowed in the other.
        if isinstance(result.get(exclusive), int | float):
            result |= {inclusive: result[exclusive], exclusive: True}
    return result
