"""Grammars that no answer can follow are refused with a reason; those that explode are cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minisgl.grammar import json_schema
from minisgl.grammar.check_process import CPU_SECONDS, TOO_LARGE, TOO_LONG
from minisgl.grammar.checker import MAX_CHARACTERS, GrammarChecker


@pytest.fixture(scope="module")
def checker(smollm2: Path) -> Iterator[GrammarChecker]:
    checker = GrammarChecker(str(smollm2))
    yield checker
    checker.close()


def chain(length: int) -> dict[str, Any]:
    """A definition that leads to the next, and so on."""
    links: dict[str, Any] = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(length)}
    return {"$defs": links | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            {"type": "integer", "minimum": 5, "maximum": 3},
            "Unsatisfiable schema: minimum (5) is greater than maximum",
        ),
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "(a"}, "a pattern cannot be read: unclosed group"),
        ({"type": "string", "format": "palindrome"}, "Unknown format: palindrome"),
        ({"$ref": "#/$defs/nowhere"}, "Pointer '/$defs/nowhere' does not exist"),
        ({"$ref": "#"}, "no text fits it"),
        (deep(200), 'failed to parse "%json": recursion limit exceeded at line 1 column'),
        (
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
            "schema too large",
        ),
        ({"type": "integer", "multipleOf": 1_000_000_007}, "fuel exhausted"),
        ({"description": "x" * MAX_CHARACTERS}, f"it has more than {MAX_CHARACTERS} characters"),
        (chain(6_000), TOO_LARGE),
        ({"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnopqrstuvwxyz"]}, TOO_LONG),
    ],
)
def test_refused(checker: GrammarChecker, schema: dict[str, Any], reason: str) -> None:
    started = time.monotonic()
    refusal = checker.check(json_schema(schema))
    assert refusal.startswith(reason)
    assert len(refusal) <= 300 and "\n" not in refusal
    assert time.monotonic() - started < 5 * CPU_SECONDS


@pytest.mark.parametrize(
    "schema",
    [
        {},
        deep(40),
        chain(500),
        {"enum": [f"value {index}" for index in range(2_000)]},
        {"type": "string", "pattern": "^(a?){5000}a{5000}$"},
        {"type": "string", "pattern": "^((((a{0,50}){0,50}){0,50}){0,50}){0,50}$"},
        {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9} for i in range(20)} | {"d20": {}}}
        | {"$ref": "#/$defs/d0"},
        {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
    ],
)
def test_large_but_harmless(checker: GrammarChecker, schema: dict[str, Any]) -> None:
    assert checker.check(json_schema(schema)) == ""


def test_a_verdict_is_remembered(checker: GrammarChecker) -> None:
    good, bad = json_schema({"const": "remembered"}), json_schema({"enum": []})
    assert checker.known(good) is None and checker.known(bad) is None
    checker.check(good)
    checker.check(bad)
    assert checker.known(good) == "" and checker.known(bad) == "Unsatisfiable schema: anyOf is empty"


def test_a_judge_that_is_gone_is_replaced(checker: GrammarChecker) -> None:
    checker.check("start: /before/")
    assert checker._process is not None
    checker._process.kill()
    with pytest.raises(OSError):
        checker.check("start: /between/")
    assert checker.check("start: /after/") == ""


def test_a_model_without_a_vocabulary_of_bytes_refuses_every_grammar(tmp_path: Path) -> None:
    checker = GrammarChecker(str(tmp_path))
    try:
        assert "tokenizer.json: a grammar needs this file" in checker.check("start: /x/")
    finally:
        checker.close()
