"""An engine and a scheduler in this process, without the server around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.dummy import weightless
from minisgl.core.config import EngineConfig, SchedulerConfig
from minisgl.utils.errors import UserError


def configurations(model: Path, options: dict[str, Any]) -> tuple[EngineConfig, SchedulerConfig]:
    """`options` sorted into the two; random weights if `model` has none. Raises `UserError` for an unknown one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    engine: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "dummy_weight": weightless(model),
    }
    scheduler: dict[str, Any] = {}
    for name, value in options.items():
        if name in EngineConfig.__struct_fields__:
            engine[name] = value
        elif name in SchedulerConfig.__struct_fields__:
            scheduler[name] = value
        else:
            known = ", ".join(EngineConfig.__struct_fields__ + SchedulerConfig.__struct_fields__)
            raise UserError(f"--options {name}: known are {known}")
    built = msgspec.convert({"model_path": str(model)} | engine, EngineConfig)
    return built, msgspec.convert(scheduler, SchedulerConfig)
