"""The tables of docs/openai.md are what the bodies' types say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from minisgl.server.body import parse
from minisgl.server.errors import ApiError
from minisgl.server.openai_types import ChatRequest, CompletionRequest

REPOSITORY = Path(__file__).parents[3]
BARE: dict[type[ChatRequest | CompletionRequest], dict[str, Any]] = {
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"model": "m", "prompt": "hi"},
}
KINDS = tuple(BARE)


class Row(NamedTuple):
    name: str
    where: tuple[str, ...]
    """What chats and completions do with it."""
    accepted: str
    test: Sequence[str]
    """A file, and a function in it, behind its class if it has one; empty where the parameter is refused."""


def rows() -> list[Row]:
    text = (REPOSITORY / "docs" / "openai.md").read_text()
    found = []
    for line in re.findall(r"^\| `\w+` \|.*$", text, re.M):
        name, chat, completion, accepted, *test = (cell.strip() for cell in line.strip("|").split(" | "))
        if chat in ("yes", "refused", "—"):
            words = re.findall(r"`([^`]+)`", test[0]) if test else []
            found.append(Row(name.strip("` "), (chat, completion), accepted.rstrip(" |"), words))
    return found


ROWS = rows()


def test_every_parameter_has_one_row_and_every_row_a_parameter() -> None:
    known = [name for kind in KINDS for name in (*kind.model_fields, *kind.NEUTRAL)]
    assert sorted(row.name for row in ROWS) == sorted(set(known))


def test_no_parameter_of_the_official_client_is_left_out() -> None:
    theirs = {
        *chat_create_params.CompletionCreateParamsBase.__annotations__,
        *completion_create_params.CompletionCreateParamsBase.__annotations__,
        "stream",
    }
    assert theirs <= {row.name for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_the_types_say(row: Row) -> None:
    for kind, said in zip(KINDS, row.where, strict=True):
        is_field, is_neutral = row.name in kind.model_fields, row.name in kind.NEUTRAL
        assert said == ("yes" if is_field else "refused" if is_neutral else "—")
        if is_neutral and not row.test:
            values = [json.loads(value) for value in re.findall(r"`([^`]+)`", row.accepted)]
            assert values == [None, *kind.NEUTRAL[row.name]]


@pytest.mark.parametrize("row", [row for row in ROWS if "yes" in row.where], ids=lambda row: row.name)
def test_a_supported_parameter_has_a_test(row: Row) -> None:
    file, test = row.test
    (path,) = (REPOSITORY / "tests").rglob(file)
    place, _, function = test.rpartition("::")
    _, _, body = path.read_text().partition(f"class {place}:") if place else ("", "", path.read_text())
    assert re.search(rf"^ *def {function}\(", body.partition("\nclass ")[0] if place else body, re.M)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_refused_is_refused_by_name(kind: type[ChatRequest | CompletionRequest]) -> None:
    assert not set(kind.NEUTRAL) & set(kind.model_fields)
    for name, neutral in kind.NEUTRAL.items():
        for value in (None, *neutral):
            parse(json.dumps(BARE[kind] | {name: value}).encode(), kind)
        with pytest.raises(ApiError) as caught:
            parse(json.dumps(BARE[kind] | {name: {"asks": "something"}}).encode(), kind)
        assert (caught.value.status, caught.value.param) == (400, name)
        assert caught.value.code == "unsupported_parameter" and name in caught.value.message
