"""Where a Hugging Face directory keeps its chat template. Cheap to import: the launcher looks at the text too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minisgl.utils.errors import UserError


def read_template(directory: Path) -> str | None:
    """The source of the chat template; None when there is none. Raises `UserError` for a broken configuration."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = read_tokenizer_config(directory).get("chat_template")
    if isinstance(source, list):  # several templates, each with a name
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return source if isinstance(source, str) else None


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, empty when there is none. Raises `UserError` when it is not a JSON object."""
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return content
