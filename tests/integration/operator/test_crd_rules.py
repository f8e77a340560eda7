"""The CRD in a real API server: the table of tests/unit/operator/test_validate.py, and what only a server does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

from minisgl_operator import api
from minisgl_operator.crd import crd
from minisgl_operator.validate import validate
from support.envtest import ControlPlane
from support.rules import BAD, CHANGES, GOOD, UNKNOWN, Bad, Document, service


class Services:
    """The services of one namespace, over HTTP as kubectl does it."""

    def __init__(self, api_client: client.ApiClient, namespace: str) -> None:
        self._resources = client.CustomObjectsApi(api_client)
        self._where = (api.GROUP, api.VERSION, namespace, api.PLURAL)

    def create(self, document: Document, *, dry_run: bool = True, strict: bool = True) -> Document:
        return self._call(
            self._resources.create_namespaced_custom_object,
            *self._where,
            document,
            dry_run="All" if dry_run else None,
            field_validation="Strict" if strict else "Warn",
        )

    def replace(self, document: Document, *, subresource: str = "") -> Document:
        """Puts the document in the place of what is there, whatever its version."""
        name = document["metadata"]["name"]
        present = self._call(self._resources.get_namespaced_custom_object, *self._where, name)
        metadata = document["metadata"] | {"resourceVersion": present["metadata"]["resourceVersion"]}
        kind = f"_{subresource}" if subresource else ""
        replace = getattr(self._resources, f"replace_namespaced_custom_object{kind}")
        return self._call(replace, *self._where, name, document | {"metadata": metadata})

    def scale(self, name: str, replicas: int | None = None) -> Document:
        """The scale subresource, set first where `replicas` is given."""
        if replicas is not None:
            patch = {"spec": {"replicas": replicas}}
            self._call(self._resources.patch_namespaced_custom_object_scale, *self._where, name, patch)
        return self._call(self._resources.get_namespaced_custom_object_scale, *self._where, name)

    def refusal(self, document: Document, old: Document | None = None) -> str:
        """What the server says when it refuses to create the document, or to put it in the place of `old`."""
        if old is not None:
            self.create(old, dry_run=False)
        with pytest.raises(client.ApiException) as caught:
            self.create(document) if old is None else self.replace(document)
        assert caught.value.status in (400, 422)
        message: str = json.loads(caught.value.body)["message"]
        return message

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Document:
        result: Document = method(*arguments, **{key: value for key, value in options.items() if value})
        return result


@pytest.fixture
def services(admin: client.ApiClient, namespace: str) -> Services:
    return Services(admin, namespace)


def test_the_server_takes_the_crd_as_it_is(admin: client.ApiClient) -> None:
    """Nothing of it was dropped, and no condition complains."""
    definition = client.ApiextensionsV1Api(admin).read_custom_resource_definition(crd()["metadata"]["name"])
    conditions = {each.type: each.status for each in definition.status.conditions}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    stored = admin.sanitize_for_serialization(definition)
    (version,) = stored["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    (generated,) = crd()["spec"]["versions"]
    assert schema == generated["schema"]["openAPIV3Schema"]
    assert version["additionalPrinterColumns"] == generated["additionalPrinterColumns"]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_resource_is_refused_by_field(services: Services, bad: Bad) -> None:
    message = services.refusal(bad.document, bad.old)
    assert f"{bad.field}: " in message
    assert bad.message in message


@pytest.mark.parametrize("field", UNKNOWN)
def test_an_unknown_field_is_refused(services: Services, field: str) -> None:
    assert f'strict decoding error: unknown field "{field}"' in services.refusal(UNKNOWN[field])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_resource_is_accepted_with_the_defaults_of_validate(services: Services, name: str) -> None:
    stored = services.create(GOOD[name])
    assert stored["spec"] == validate(GOOD[name])["spec"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_good_change_is_accepted(services: Services, name: str) -> None:
    old, new = CHANGES[name]
    services.create(old, dry_run=False)
    assert services.replace(new)["spec"] == validate(new, old)["spec"]


def test_the_scale_subresource(services: Services) -> None:
    document = service(replicas=2)
    created = services.create(document, dry_run=False)
    status = {"replicas": 1, "selector": "a=b", "observedGeneration": 1}
    services.replace(created | {"status": status}, subresource="status")

    scale = services.scale("qwen3")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    assert services.scale("qwen3", 3)["spec"] == {"replicas": 3}


def test_the_status_is_a_subresource_of_its_own(services: Services) -> None:
    created = services.create(service() | {"status": {"url": "http://elsewhere"}}, dry_run=False)
    assert "status" not in created

    condition = {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "Ready",
    }
    changed = created | {"status": {"conditions": [condition]}, "spec": {"model": {}}}
    written = services.replace(changed, subresource="status")
    assert written["spec"] == created["spec"]
    assert written["status"]["conditions"] == [condition | {"message": ""}]

    twice = written | {"status": {"conditions": [condition, condition]}}
    with pytest.raises(client.ApiException, match="Duplicate value"):
        services.replace(twice, subresource="status")


def test_kubectl_get_shows_the_columns(control_plane: ControlPlane, services: Services, namespace: str) -> None:
    created = services.create(service(replicas=2, parallelism={"tensor": 4}), dry_run=False)
    condition = {
        "type": "Ready",
        "status": "False",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "Downloading",
    }
    status = {"conditions": [condition], "servedModel": "Qwen3", "readyReplicas": 1, "cache": {"phase": "Bound"}}
    services.replace(created | {"status": status}, subresource="status")

    path = f"/apis/{api.API_VERSION}/namespaces/{namespace}/{api.PLURAL}"
    table = control_plane.get(path, accept="application/json;as=Table;g=meta.k8s.io;v=v1")
    names = [column["name"] for column in table["columnDefinitions"]]
    (row,) = table["rows"]
    shown = dict(zip(names, row["cells"], strict=True))
    assert names == ["Name", *(column["name"] for column in api.PRINTER_COLUMNS)]
    assert (shown["Name"], shown["Ready"], shown["Reason"]) == ("qwen3", "False", "Downloading")
    assert (shown["Model"], shown["TP"], shown["Replicas"], shown["Cache"]) == ("Qwen3", 4, 1, "Bound")
