"""A checkpoint that is not whole is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisgl.models.checkpoint import inspect, resolve
from minisgl.models.fields import ModelError
from support.tiny_models import make_tiny_model


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_tiny_model("llama", tmp_path, max_shard_size="100KB")


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        inspect(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_checkpoint_passes(tmp_path: Path, sharded: Path) -> None:
    assert inspect(sharded) == inspect(make_tiny_model("llama", tmp_path / "single"))


def test_a_file_cut_short(tmp_path: Path) -> None:
    file = make_tiny_model("qwen3", tmp_path) / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 100)
    assert f"{file}: cut short: {size - 100} bytes, but its header says {size}" == refusal(tmp_path)
    for length in (0, 5, 300):
        with file.open("r+b") as stream:
            stream.truncate(length)
        assert f"{file}: {length} bytes that are not safetensors" in refusal(tmp_path)


def test_bytes_after_the_end(tmp_path: Path) -> None:
    file = make_tiny_model("llama", tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    assert "too long" in refusal(tmp_path)


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    file = make_tiny_model("llama", tmp_path) / "model.safetensors"
    for content in (b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]", b"\x09" + b"\0" * 7 + b'{"a": {}}'):
        file.write_bytes(content)
        assert "not safetensors" in refusal(tmp_path)


def test_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard}: no such file" in refusal(sharded)


def test_an_index_that_is_wrong(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"]["model.extra.weight"] = first
    file.write_text(json.dumps(index))
    assert "model.extra.weight" in refusal(sharded)
    index["weight_map"]["model.extra.weight"] = "../elsewhere.safetensors"
    file.write_text(json.dumps(index))
    assert "weight_map.model.extra.weight" in refusal(sharded)
    file.write_text("{}")
    assert "weight_map is missing" in refusal(sharded)


def test_no_weights(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    (path / "model.safetensors").unlink()
    assert "no weights" in refusal(path)
    assert inspect(path, skip_weights=True).architecture == "LlamaForCausalLM"


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["/no/such/directory", "./nothing", "a/b/c"])
def test_a_path_is_not_asked_of_the_hub(model: str) -> None:
    with pytest.raises(ModelError, match="no such directory") as caught:
        resolve(model)
    assert "download" not in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ModelError, match="a directory in Hugging Face format is needed"):
        resolve(str(file))


def test_what_the_hub_lacks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match="somebody/something: no such directory, and not downloadable: "
    ) as caught:
        resolve("somebody/something")
    assert "\n" not in str(caught.value)


def test_the_hub_cache_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--something"
    snapshot = repository / "snapshots" / commit
    make_tiny_model("llama", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("somebody/something").resolve() == snapshot.resolve()
