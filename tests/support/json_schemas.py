"""Fifty JSON schemas of growing size, whose answers end within some 200 tokens whatever a model makes of them.

A model that has learnt nothing of JSON writes numbers without end and strings of any length, so every number is
bounded and has few digits, and strings and arrays have a greatest length.
"""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]

COLOURS = {"enum": ["red", "green", "blue"]}
YES = {"type": "boolean"}
NOTHING = {"type": "null"}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
YEAR = {"type": "integer", "minimum": 1900, "maximum": 2099}
SIGNED = {"type": "integer", "exclusiveMinimum": -100, "exclusiveMaximum": 100}
WORD = {"type": "string", "maxLength": 8}
NAME = {"type": "string", "minLength": 1, "maxLength": 12}
CODE = {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}
DATE = {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"}
SHADE = {"type": "string", "pattern": "^#[0-9a-f]{6}$"}
SHARE = {"type": "number", "enum": [0, 0.25, 0.5, 0.75, 1]}


def record(**properties: Any) -> Schema:
    """An object with all of `properties` and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def optional(**properties: Any) -> Schema:
    """An object with any of `properties`."""
    return record(**properties) | {"required": []}


def some(items: Schema, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def tuple_of(*items: Schema) -> Schema:
    return {"type": "array", "prefixItems": list(items), "items": False, "minItems": len(items)}


def either(*options: Schema) -> Schema:
    return {"anyOf": list(options)}


def nested(depth: int, core: Schema) -> Schema:
    """`core` in that many objects and arrays by turns."""
    schema = core
    for level in range(depth):
        schema = record(inner=schema) if level % 2 == 0 else some(schema, 1, 1)
    return record(outer=schema)


def referring(root: Schema, /, **definitions: Schema) -> Schema:
    return root | {"$defs": definitions}


def to(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


PERSON = record(name=NAME, born=YEAR)
PLACE = record(city=NAME, country={"enum": ["France", "Japan", "Peru"]})
CIRCLE = record(kind={"const": "circle"}, radius=DIGIT)
SQUARE = record(kind={"const": "square"}, side=DIGIT, shade=SHADE)
BRANCH = {
    "type": "object",
    "properties": {"value": DIGIT, "next": either(NOTHING, to("leaf"))},
    "required": ["value", "next"],
    "additionalProperties": False,
}

_SCHEMAS: list[Schema] = [
    # One property.
    record(answer=YES),
    record(colour=COLOURS),
    record(nothing=NOTHING),
    record(digit=DIGIT),
    record(year=YEAR),
    record(number=SIGNED),
    record(word=WORD),
    record(name=NAME),
    record(code=CODE),
    record(date=DATE),
    # Two or three, and few forms of them.
    record(share=SHARE, sure=YES),
    record(name=NAME, colour=COLOURS),
    record(kind={"const": "point"}, x=SIGNED, y=SIGNED),
    record(mixed={"enum": ["one", 1, None, True]}, shade=SHADE),
    optional(digit=DIGIT, sure=YES),
    record(digits=some(DIGIT)),
    record(colours=some(COLOURS, 2, 4)),
    record(pair=tuple_of(DIGIT, COLOURS)),
    record(either=either(DIGIT, COLOURS)),
    record(word={"type": ["string", "null"], "maxLength": 6}, even={"type": "integer", "enum": [2, 4, 6, 8]}),
    # Records in records.
    PERSON,
    record(person=PERSON),
    record(person=PERSON, place=PLACE),
    record(shape=either(CIRCLE, SQUARE)),
    record(shapes=some(either(CIRCLE, SQUARE), 1, 2)),
    record(maybe=either(PERSON, NOTHING), code=CODE),
    record(rows=some(some(DIGIT, 2, 2), 2, 2)),
    nested(4, DIGIT),
    nested(7, COLOURS),
    nested(10, YES),
    # References.
    referring(record(first=to("digit"), second=to("digit")), digit=DIGIT),
    referring(record(author=to("person"), reader=to("person")), person=PERSON),
    referring(record(list=to("branch")), branch=BRANCH, leaf=record(value=DIGIT)),
    referring(record(shapes=some(to("shape"), 1, 2)), shape=either(to("circle"), SQUARE), circle=CIRCLE),
    referring(to("root"), root=record(at=to("place"), on=DATE), place=PLACE),
    # Intersections, maps, and properties that may be missing.
    {"allOf": [record(a=DIGIT, b=YES) | {"additionalProperties": True}, record(a=DIGIT, b=YES)]},
    {"type": "object", "patternProperties": {"^k[0-9]$": DIGIT}, "additionalProperties": False, "minProperties": 1}
    | {"maxProperties": 1},
    record(settings=optional(theme=COLOURS, size=DIGIT, beta=YES)),
    record(id={"type": "integer", "minimum": 100, "maximum": 999}, tags=some(COLOURS, 0, 3), note=WORD),
    record(short={"type": "string", "minLength": 3, "maxLength": 3}, shade=SHADE, share=SHARE, date=DATE),
    # Whole documents.
    record(order=CODE, date=DATE, lines=some(record(item=COLOURS, count=DIGIT), 1, 2), paid=YES),
    record(title=NAME, author=PERSON, shape=either(CIRCLE, SQUARE), tags=some(COLOURS, 1, 2)),
    record(flight=CODE, away=PLACE, home=PLACE, seats=some(CODE, 1, 2)),
    record(name=NAME, born=DATE, address=optional(city=NAME, code=CODE), scores=some(DIGIT, 3, 3), admin=YES),
    record(team=some(PERSON, 2, 2), captain=DIGIT, colours=tuple_of(SHADE, SHADE)),
    record(board=some(tuple_of(COLOURS, COLOURS, COLOURS), 3, 3)),
    record(tree=record(value=DIGIT, left=record(value=DIGIT), right=either(NOTHING, record(value=DIGIT)))),
    record(**{f"q{index}": YES for index in range(10)}),
    record(**{f"f{index}": (DIGIT, COLOURS, YES, CODE)[index % 4] for index in range(12)}),
    referring(
        record(
            id=CODE,
            owner=to("person"),
            parts=some(either(to("circle"), to("square")), 1, 2),
            history=some(record(on=DATE, by=to("short")), 1, 2),
            state={"enum": ["new", "open", "closed"]},
        ),
        person=PERSON,
        circle=CIRCLE,
        square=SQUARE,
        short={"type": "string", "maxLength": 5},
    ),
]

SCHEMAS: list[Schema] = sorted(_SCHEMAS, key=lambda schema: len(json.dumps(schema)))
