"""Reading a checkpoint's JSON files: each error names the file, the field, its value and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

from minisgl.utils.errors import UserError


class ModelError(UserError):
    """A checkpoint, or a use of it, that this engine cannot serve."""


class Fields:
    """The fields of one JSON object. A field that is null counts as absent, as in `transformers`.

    Every reader raises `ModelError` for a value outside what it allows, and, when it has no default, for an
    absent field.
    """

    def __init__(self, file: Path, values: dict[str, object], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    @staticmethod
    def read(file: Path) -> Fields:
        """The object in `file`."""
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise ModelError(f"{file}: no such file, but a model directory needs it") from None
        except OSError as error:
            raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ModelError(f"{file}: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ModelError(f"{file}: holds a JSON {type(values).__name__}, but an object is needed")
        return Fields(file, values)

    def error(self, name: str, allowed: str) -> ModelError:
        """What to raise for field `name`, whose value is not among `allowed`."""
        value = self.values.get(name)
        found = "is missing" if value is None else f"is {json.dumps(value, default=str)[:200]}"
        return ModelError(f"{self.file}: {self.prefix}{name} {found}; allowed: {allowed}")

    def get(self, *names: str) -> object | None:
        """The first of these fields that is present."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"integers from {minimum}")
        return value

    def number(
        self, name: str, default: float | None = None, *, minimum: float | None = None, maximum: float = math.inf
    ) -> float:
        """A finite number above 0, or from `minimum`, up to `maximum`."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (value > 0 if minimum is None else value >= minimum)
            or value > maximum
            or math.isinf(value)
        ):
            least = "above 0" if minimum is None else f"from {minimum:g}"
            raise self.error(name, f"numbers {least}" + ("" if maximum == math.inf else f" to {maximum:g}"))
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true, false")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """One integer or a list of them, from 0; none when the field is absent."""
        value = self.values.get(name)
        many = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in many):
            raise self.error(name, "an integer from 0, or a list of them")
        return tuple(many)

    def choice(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, ", ".join(allowed))
        return value

    def object(self, name: str) -> Fields | None:
        """The object under `name`; None when it is absent or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(self.file, value, f"{self.prefix}{name}.")
