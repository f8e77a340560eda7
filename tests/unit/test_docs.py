"""What the documents say of the source is still so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document: Path) -> None:
    text = document.read_text()
    paths = set(re.findall(r"`((?:worker|tests|bench|docs|examples)/[\w./-]+)`", text))
    links = set(re.findall(r"\]\(([\w./-]+)\)", text))
    missing = [path for path in paths if not (REPOSITORY / path).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_excerpt_stands_in_its_file(document: Path) -> None:
    """A fence ```` ```python some/path.py ```` quotes that file to the letter."""
    stale = [
        f"{path}: {excerpt}"
        for path, excerpt in re.findall(r"^```python (\S+)\n(.*?)^```$", document.read_text(), re.M | re.S)
        if excerpt not in (REPOSITORY / path).read_text()
    ]
    assert not stale


def test_the_tour_has_excerpts() -> None:
    assert (REPOSITORY / "docs" / "tour.md").read_text().count("```python worker/") >= 8
