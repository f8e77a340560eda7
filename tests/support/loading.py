"""A model with all its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from minisgl.distributed import Communicator
from minisgl.models.config import ModelConfig
from minisgl.models.loader import begin_loading
from minisgl.models.transformer import Transformer


def load_model(
    config: ModelConfig,
    path: Path,
    comm: Communicator,
    *,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Transformer:
    """As `begin_loading`, but returns when every weight is there."""
    model, filling = begin_loading(config, path, comm, device=device, dtype=dtype, **options)
    filling.wait()
    return model
