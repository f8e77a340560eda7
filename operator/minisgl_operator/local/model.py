"""Whether the model is there already."""

from __future__ import annotations

from pathlib import Path

from minisgl_operator import api

BEGUN, WHOLE = ".minisgl-download.lock", ".minisgl-complete.json"
"""What a download writes into its directory when it begins, and when the model is whole."""


def find_model(source: api.HuggingFace, models: Path) -> Path | None:
    """The directory of the model: where it is downloaded to, or one of its name that the user has put there."""
    downloaded = models / source.repo / source.revision
    for directory in (downloaded, models / source.repo.rpartition("/")[2]):
        partial = (directory / BEGUN).exists() and not (directory / WHOLE).exists()
        if (directory / "config.json").is_file() and not partial:
            return directory
    return None
