"""Model directories of real size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench import weights

from minisgl.distributed import Communicator
from minisgl.models.checkpoint import inspect
from minisgl.utils.errors import UserError
from support.loading import load_model
from support.tiny_models import make_tiny_model


def test_written_weights_are_a_whole_random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dimensions = make_tiny_model("qwen3", tmp_path / "tiny")
    monkeypatch.setattr(weights, "FILE_BYTES", 50_000)
    size = weights.write(dimensions, tmp_path / "made")
    files = list((tmp_path / "made").glob("*.safetensors"))
    assert len(files) > 1
    assert size == sum(file.stat().st_size for file in files)
    config = inspect(tmp_path / "made")  # every file whole, every tensor of the index in its file
    assert json.loads((tmp_path / "made" / "config.json").read_text())["hidden_size"] == config.hidden_size
    # On a CPU the other types are packed.
    model = load_model(config, tmp_path / "made", Communicator(), device=torch.device("cpu"), dtype=torch.float16)
    drawn = torch.cat([parameter.float().flatten() for parameter in model.parameters()])
    assert drawn.std().item() == pytest.approx(weights.STD, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=1e-3)


def test_a_directory_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists"):
        weights.write(make_tiny_model("qwen3", tmp_path / "tiny"), tmp_path / "tiny")
