"""Checks a MiniSGLangService as the API server would, where there is none: local mode and `render`.

The schema, its defaults and its rules are the CRD's own. The rules are evaluated by Google's CEL, in which the API
server's implementation passes the same conformance tests.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings
from jsonschema import Draft4Validator, ValidationError, validators

from minisgl_operator.api import API_VERSION, KIND
from minisgl_operator.crd import resource_schema

PRESERVE = "x-kubernetes-preserve-unknown-fields"

_TEXT, _INTEGER, _TEXTS = {"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}}
_MAP = {"type": "object", "additionalProperties": _TEXT}
_FRAGMENTS = {"type": "array", "items": {"type": "object", PRESERVE: True}}
METADATA: Mapping[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        **dict.fromkeys(("name", "namespace", "uid", "resourceVersion"), _TEXT),
        **dict.fromkeys(("creationTimestamp", "deletionTimestamp"), _TEXT),
        **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), _INTEGER),
        **dict.fromkeys(("labels", "annotations"), _MAP),
        **dict.fromkeys(("ownerReferences", "managedFields"), _FRAGMENTS),
        "finalizers": _TEXTS,
    },
}
"""What the API server knows of metadata by itself; here a name is given, never generated."""


class InvalidResource(ValueError):
    """A resource that the API server would refuse; each problem names its field."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class InvalidFile(ValueError):
    """A file that no service can be read from; the message is one line, which begins with the file's name."""


@dataclass(frozen=True)
class ServiceFile:
    """One service as it was written, and the Secrets beside it: their decoded values by name and key."""

    service: dict[str, Any]
    secrets: dict[str, dict[str, str]]


def validate(document: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document with its defaults filled in. Raises InvalidResource.

    With `old`, the resource that it replaces, rules about changes hold too. Rules are only evaluated on what fits
    the schema.
    """
    given = (document.get("apiVersion"), document.get("kind"))
    if given != (API_VERSION, KIND):
        raise InvalidResource([f"must be apiVersion {API_VERSION}, kind {KIND}; not {given[0]}, {given[1]}"])
    schema = _schema()
    resource: dict[str, Any] = _filled(document, schema)
    problems = [f'unknown field "{path}"' for path in _unknown_fields(document, schema, "")]
    errors = sorted(_schema_validator().iter_errors(resource), key=lambda error: _path(error.absolute_path))
    problems += (problem for error in errors for problem in _describe(error))
    if not problems:
        previous = None if old is None else _filled(old, schema)
        problems += _broken_rules(resource, previous, schema, "")
    if problems:
        raise InvalidResource(list(dict.fromkeys(problems)))
    return resource


@functools.cache
def _schema() -> dict[str, Any]:
    schema = resource_schema()
    schema["required"] = [*schema["required"], "metadata"]
    schema["properties"]["metadata"] = METADATA
    return schema


def _filled(value: Any, schema: Mapping[str, Any]) -> Any:
    """A copy with defaults, and without the fields of objects that are null: they count as not given."""
    if isinstance(value, Mapping) and not schema.get(PRESERVE):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        given = {key: item for key, item in value.items() if item is not None}
        defaults = {
            key: field["default"] for key, field in fields.items() if "default" in field and key not in given
        }
        return {key: _filled(item, fields.get(key, rest)) for key, item in (given | defaults).items()}
    if isinstance(value, Mapping):
        return {key: _filled(item, schema) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, schema.get("items", schema)) for item in value]
    return value


def _unknown_fields(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if schema.get(PRESERVE):
        return
    if isinstance(value, Mapping):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            field = fields.get(key, rest)
            if field is not None:
                yield from _unknown_fields(item, field, _path([key], path))
            elif schema.get("type") == "object":  # else it is of a wrong type altogether, which the schema says
                yield _path([key], path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_fields(item, schema.get("items", {}), _path([index], path))


def _path(parts: Sequence[str | int], start: str = "") -> str:
    """A field as the API server writes it: spec.env[1].name."""
    for part in parts:
        start += f"[{part}]" if isinstance(part, int) else f".{part}" if start else str(part)
    return start


# --- the schema ---


@functools.cache
def _schema_validator() -> Any:
    # Draft 4 is what OpenAPI 3.0 is made from: there, exclusiveMinimum is a boolean beside minimum.
    dialect: Any = validators
    return dialect.extend(Draft4Validator, {"pattern": _check_pattern})(_schema())


def _check_pattern(_validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str) or len(instance) < schema.get("minLength", 0):
        return  # too short says it all
    # In Python, unlike elsewhere, $ also matches before a newline at the end.
    if not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError("does not match")


def _describe(error: Any) -> Iterator[str]:
    """The problems of one error, in the API server's words where it is clear in them."""
    path, limit = _path(error.absolute_path), error.validator_value
    invalid = f"{path}: Invalid value: {_shown(error.instance)}:"
    exclusive = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}.get(error.validator)
    or_equal = "" if error.schema.get(exclusive) else " or equal to"
    match error.validator:
        case "required":
            missing = [name for name in limit if name not in error.instance]
            yield from (f"{_path([name], path)}: Required value" for name in missing)
        case "enum":
            supported = ", ".join(_shown(str(value)) for value in limit)
            yield f"{path}: Unsupported value: {_shown(error.instance)}: supported values: {supported}"
        case "type":
            yield f"{invalid} must be of type {limit}"
        case "anyOf":
            yield f"{invalid} must be of type {','.join(kind['type'] for kind in limit)}"
        case "minimum":
            yield f"{invalid} should be greater than{or_equal} {limit}"
        case "maximum":
            yield f"{invalid} should be less than{or_equal} {limit}"
        case "pattern":
            yield f"{invalid} should match '{limit}'"
        case "minLength":
            yield f"{invalid} should be at least {limit} chars long"
        case "maxLength":
            yield f"{path}: Too long: may not be more than {limit} characters"
        case "maxItems" | "maxProperties":
            count = len(error.instance)
            yield f"{path}: Too many: {count}: must have at most {limit} items"
        case _:
            yield f"{invalid} {error.message}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        value = "array" if isinstance(value, list) else "object"
    return json.dumps(value, ensure_ascii=False)


# --- the rules ---


@functools.cache
def _program(rule: str) -> Any:
    variables = {"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}
    return cel.NewEnv(variables=variables, extensions=[ext_strings.ExtStrings()]).compile(rule)


def _broken_rules(value: Any, old: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """The rules that do not hold at `path` and below. A list's items have no old self: none is known to be it."""
    for validation in schema.get("x-kubernetes-validations", ()):
        rule, data = validation["rule"], {"self": value}
        if re.search(r"\boldSelf\b", rule):
            if old is None:
                continue
            data["oldSelf"] = old
        result = _program(rule).eval(data=data)
        if result.type() == cel.Type.ERROR:
            yield f"{path}: Invalid value: {result.value()} evaluating rule: {validation['message']}".lstrip(": ")
        elif not result.value():
            yield f"{path}: Invalid value: {validation['message']}".lstrip(": ")
    if isinstance(value, Mapping):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            before = old.get(key) if isinstance(old, Mapping) else None
            yield from _broken_rules(item, before, fields.get(key, rest), _path([key], path))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(item, None, schema.get("items", {}), _path([index], path))


# --- the file ---


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a date is text, and a key stands once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f'"{key.value}" again', problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def load_service(path: Path) -> ServiceFile:
    """Reads a file of one MiniSGLangService, and any Secrets that it names. Raises InvalidFile."""
    services: list[dict[str, Any]] = []
    secrets: dict[str, dict[str, str]] = {}
    for document in _documents(path):
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind == KIND:
            services.append(document)
        elif kind == "Secret":
            name, values = _secret(document, path)
            secrets[name] = values
        else:
            raise InvalidFile(
                f"{path}: holds {kind or 'something without a kind'}; only {KIND} and Secret are read"
            )
    if len(services) != 1:
        raise InvalidFile(f"{path}: must hold one {KIND}, and holds {len(services) or 'none'}")
    return ServiceFile(services[0], secrets)


def _documents(path: Path) -> list[Any]:
    """The file's documents that are not empty, as JSON has them: keys are strings."""
    try:
        documents = [each for each in yaml.load_all(path.read_text("utf-8"), _Loader) if each is not None]
        return [json.loads(json.dumps(each, allow_nan=False)) for each in documents]
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidFile(f"{path}: not YAML: it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidFile(f"{path}: not YAML: line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InvalidFile(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except (TypeError, ValueError) as error:  # not a number, bytes, an alias within itself
        raise InvalidFile(f"{path}: has no form in JSON: {error}") from None


def _secret(document: Mapping[str, Any], path: Path) -> tuple[str, dict[str, str]]:
    metadata, texts, encoded = (document.get(key) or {} for key in ("metadata", "stringData", "data"))
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not isinstance(texts, dict) or not isinstance(encoded, dict):
        raise InvalidFile(f"{path}: a Secret must have metadata.name, and data or stringData that are objects")
    values: dict[str, str] = {}
    for key, value in encoded.items():
        try:
            values[key] = base64.b64decode(value, validate=True).decode()
        except (TypeError, binascii.Error, UnicodeDecodeError):
            raise InvalidFile(f"{path}: Secret {name}: data.{key} must be text in base64") from None
    for key, value in texts.items():
        if not isinstance(value, str):
            raise InvalidFile(f"{path}: Secret {name}: stringData.{key} must be a string")
        values[key] = value
    return name, values
