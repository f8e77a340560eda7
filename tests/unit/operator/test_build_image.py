"""Which image runs: the spec's parts over the pinned one's, or over the default's."""

from __future__ import annotations

import pytest

from minisgl_operator import api
from minisgl_operator.build.image import Defaults, Reference, pull_policy, worker_image

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
MODEL = {"huggingFace": {"repo": "gpt2"}}


def spec(device: str = "cuda", **image: str) -> api.Spec:
    return api.Spec.model_validate({"model": MODEL, "engine": {"device": device}, "image": image})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("worker", ("worker", None, None)),
        ("worker:1.0", ("worker", "1.0", None)),
        ("org/worker:1.0", ("org/worker", "1.0", None)),
        ("localhost:5000/worker", ("localhost:5000/worker", None, None)),
        ("localhost:5000/org/worker:1.0", ("localhost:5000/org/worker", "1.0", None)),
        (f"worker@{A}", ("worker", None, A)),
        (f"localhost:5000/worker:1.0@{A}", ("localhost:5000/worker", "1.0", A)),
    ],
)
def test_references_are_taken_apart(text: str, parts: tuple[str, str | None, str | None]) -> None:
    assert Reference.parse(text) == Reference(*parts)
    assert str(Reference(*parts)) == text


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, f"hub.example:5000/worker:1.0@{A}"),
        ({"tag": "2.0"}, "hub.example:5000/worker:2.0"),
        ({"digest": B}, f"hub.example:5000/worker@{B}"),
        ({"tag": "2.0", "digest": B}, f"hub.example:5000/worker:2.0@{B}"),
        ({"repository": "mirror:443/w"}, f"mirror:443/w:1.0@{A}"),
        ({"repository": "mirror:443/w", "tag": "2.0"}, "mirror:443/w:2.0"),
    ],
)
def test_the_spec_replaces_parts_of_the_default(image: dict[str, str], expected: str) -> None:
    default = f"hub.example:5000/worker:1.0@{A}"
    assert worker_image(spec(**image), Defaults(default, "cpu:1"), None) == expected
    assert worker_image(spec(**image), Defaults("newer:2", "cpu:2"), default) == expected


def test_the_device_chooses_the_default_and_a_pin_stays() -> None:
    defaults = Defaults("gpu:1", "cpu:1")
    assert worker_image(spec("cuda"), defaults, None) == "gpu:1"
    assert worker_image(spec("cpu"), defaults, None) == "cpu:1"
    assert worker_image(spec("cpu"), defaults, "cpu:0") == "cpu:0"


def test_the_pull_policy_is_the_specs_then_the_operators_then_open() -> None:
    assert pull_policy(spec(pullPolicy="Always"), Defaults("w", "c", "Never")) == "Always"
    assert pull_policy(spec(), Defaults("w", "c", "Never")) == "Never"
    assert pull_policy(spec(), Defaults("w", "c")) is None
