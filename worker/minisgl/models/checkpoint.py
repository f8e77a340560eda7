"""Where a model's files are, and whether they are whole. Imports no torch, reads no weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from minisgl.models.config import ModelConfig
from minisgl.models.fields import Fields, ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]
"""Patterns of what is downloaded of a repository on the Hugging Face Hub."""
NOT_HUB_FILES = ["*/*", "consolidated*"]
"""And of what is not: other formats' folders, and Mistral's second copy of the weights."""

MAX_HEADER = 100_000_000
"""Bytes; the safetensors format's own bound."""


def resolve(model: str, revision: str | None = None) -> Path:
    """The local directory of `model`: a path, or the id of a repository on the Hugging Face Hub.

    A repository is downloaded, or found in the hub's cache; with HF_HUB_OFFLINE=1 the cache alone is asked.
    Raises `ModelError` when there is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {model}: a file, but a directory in Hugging Face format is needed")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model {model}: no such directory")
    # A second's import that a local directory does not need.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
        )
    except Exception as error:  # the hub's client raises dozens of kinds, its HTTP library's among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"model {model}: no such directory, and not downloadable: {reason[:300]}") from None


def inspect(path: Path, *, skip_weights: bool = False) -> ModelConfig:
    """Load the configuration, and check every weight file's header and length unless `skip_weights`.

    Raises `ModelError` for a configuration that cannot be served, or a file that is missing, not safetensors or
    cut short.
    """
    config = ModelConfig.load(path)
    if not skip_weights:
        for file, tensors in weight_files(path).items():
            present = read_header(file)
            missing = next((name for name in tensors if name not in present), None)
            if missing is not None:
                raise ModelError(f"{file}: holds no tensor {missing}, but {INDEX} says so")
    return config


def weight_files(path: Path) -> dict[Path, list[str]]:
    """Each weight file of the model directory `path`, with the tensors that the index says it holds (none for a
    single file, which has no index)."""
    if (path / WEIGHTS).exists():
        return {path / WEIGHTS: []}
    if not (path / INDEX).exists():
        raise ModelError(f"{path}: no weights; needed: {WEIGHTS}, or {INDEX} and the files it names")
    index = Fields.read(path / INDEX)
    entries = index.object("weight_map")
    if entries is None:
        raise index.error("weight_map", "an object from tensor names to file names")
    files: dict[Path, list[str]] = {}
    for tensor, name in entries.values.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise entries.error(tensor, "the name of a file beside the index")
        files.setdefault(path / name, []).append(tensor)
    return files


class Entry(NamedTuple):
    """What a safetensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """In the format's own words, such as ``BF16``."""
    start: int
    """Its first byte in the file, and how many there are."""
    size: int


def read_header(file: Path) -> dict[str, Entry]:
    """What every tensor in a safetensors file is, after the file's length is checked against its header.

    A file is 8 bytes of header length (little-endian), the header in JSON, then the tensors' bytes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length_bytes = stream.read(8)
            (length,) = struct.unpack("<Q", length_bytes) if len(length_bytes) == 8 else (MAX_HEADER + 1,)
            header = stream.read(length) if length <= min(MAX_HEADER, size) else b""
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file, but {INDEX} names it") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        found = {name: _entry(8 + length, entry) for name, entry in entries.items()}
        expected = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(f"{file}: {size} bytes that are not safetensors, or cut within the header") from None
    if size != expected:
        state = "cut short" if size < expected else "too long"
        raise ModelError(f"{file}: {state}: {size} bytes, but its header says {expected}")
    return found


def _entry(base: int, entry: dict[str, Any]) -> Entry:
    start, stop = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(str(dimension)) for dimension in entry["shape"])
    return Entry(shape, str(entry["dtype"]), base + start, stop - start)
