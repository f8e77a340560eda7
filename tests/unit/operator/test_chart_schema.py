"""What the schema of the chart's values refuses, and how it says so."""

from __future__ import annotations

import json
from typing import Any

import helm_python
import pytest
import yaml

from support.helm import CHART, render

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"watchNamespace": "a"}, "'watchNamespace' not allowed"),
    "unknown key within": (
        {"monitoring": {"alerts": {"enable": True}}},
        "/monitoring/alerts.*'enable' not allowed",
    ),
    "text for a list": ({"watchNamespaces": "a"}, "/watchNamespaces.*got string, want array"),
    "not a namespace": ({"watchNamespaces": ["A_b"]}, "/watchNamespaces/0.*does not match"),
    "namespace twice": ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces.*equal"),
    "text for a boolean": ({"crds": {"install": "yes"}}, "/crds/install.*got string, want boolean"),
    "digest": ({"images": {"worker": {"digest": "sha256:12"}}}, "/images/worker/digest.*does not match"),
    "no repository": ({"images": {"operator": {"repository": ""}}}, "/images/operator/repository"),
    "pull policy": (
        {"images": {"operator": {"pullPolicy": "Sometimes"}}},
        "/images/operator/pullPolicy.*'Always', 'IfNotPresent', 'Never'",
    ),
    "number for a tag": ({"images": {"worker": {"tag": 1}}}, "/images/worker/tag.*got number, want string"),
    "log level": ({"log": {"level": "loud"}}, "/log/level.*one of 'debug', 'info', 'warning', 'error'"),
    "quantity": ({"resources": {"limits": {"cpu": True}}}, "/resources/limits/cpu.*got boolean"),
    "pull secret": ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0.*want object"),
    "number for text": ({"nodeSelector": {"gpus": 1}}, "/nodeSelector/gpus.*want string"),
    "toleration": ({"tolerations": [{"effect": "Never"}]}, "/tolerations/0/effect.*one of"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_schema_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=message):
        render(values)


def test_schema_knows_every_value_and_is_strict_throughout() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(path: str, schema: dict[str, Any], value: Any) -> None:
        if "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, path
        if isinstance(value, dict) and value:
            assert schema["properties"].keys() - {"global"} == value.keys(), path
            for key, inner in value.items():
                compare(f"{path}/{key}", schema["properties"][key], inner)

    compare("", schema, values)
