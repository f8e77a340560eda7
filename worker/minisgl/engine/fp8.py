"""Whether a machine and a model can do what the options for FP8 ask."""

from __future__ import annotations

import torch

from minisgl.core.config import EngineConfig
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError

LEAST_CAPABILITY = (8, 9)
"""Of the first GPUs with FP8, the Ada generation."""


def check_fp8(config: EngineConfig, model: ModelConfig) -> None:
    """Raise `UserError` naming the option, and why it cannot be met."""
    weights = config.quantization == "fp8"
    for option, asked in (
        ("--quantization fp8", weights),
        ("--kv-cache-dtype fp8", config.kv_cache_dtype == "fp8"),
    ):
        if not asked:
            continue
        if config.device != "cuda":
            raise UserError(f"{option}: FP8 needs a GPU, and the model runs on --device {config.device}")
        capability = torch.cuda.get_device_capability(config.tp_rank)
        if capability < LEAST_CAPABILITY:
            least, own = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
            raise UserError(f"{option}: FP8 needs a GPU of compute capability {least} or more; this one has {own}")
    if weights and config.dtype != "bfloat16":
        raise UserError(f"--quantization fp8: needs --dtype bfloat16, not {config.dtype}")
    if weights and model.num_experts:
        raise UserError(f"--quantization fp8: not available for the mixture of experts of {model.architecture}")
