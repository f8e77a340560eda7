"""Linear layers in FP8: how a checkpoint is rounded, and who may ask for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minisgl.core.config import EngineConfig
from minisgl.distributed import Communicator
from minisgl.engine.fp8 import check_fp8
from minisgl.layers.linear import Linear
from minisgl.layers.quantized import FP8, round_rows
from minisgl.models.checkpoint import inspect
from minisgl.models.config import ModelConfig
from minisgl.models.transformer import Transformer
from minisgl.utils.errors import UserError
from support.full_attention import FullAttention
from support.loading import load_model
from support.tiny_models import make_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("qwen2", tmp_path_factory.mktemp("qwen2"))  # its projections have biases


def load(path: Path, *, comm: Communicator | None = None, **options: Any) -> Transformer:
    return load_model(inspect(path), path, comm or Communicator(), device=CPU, dtype=torch.float32, **options)


def values(model: Transformer, name: str) -> Tensor:
    """What the rounded weight of the linear layer `name` stands for."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear) and layer.scale is not None
    return layer.weight.float() * layer.scale.unsqueeze(1)


def test_rows_are_rounded_each_by_its_own_scale() -> None:
    x = torch.randn(2100, 48) * 10 ** torch.randn(2100, 1)
    x[5] = 0
    rounded, scale = torch.empty(x.shape, dtype=FP8), torch.empty(2100)
    round_rows(x, rounded, scale)
    assert rounded.float().isfinite().all()
    largest = rounded.float().abs().amax(dim=1)
    assert (largest[torch.arange(2100) != 5] == 448).all() and largest[5] == 0
    error = (rounded.float() * scale.unsqueeze(1) - x).abs()
    # Three bits after the leading one; the smallest numbers are multiples of 2 ** -9.
    assert (error <= x.abs() / 16 + scale.unsqueeze(1) * 2**-10).all()


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_rounds_its_part_of_the_linear_layers_and_nothing_else(tiny: Path, ranks: int) -> None:
    whole = load_file(tiny / "model.safetensors")
    parts = [load(tiny, comm=Communicator(rank, ranks), quantization="fp8") for rank in range(ranks)]
    linears = [[module for module in part.modules() if isinstance(module, Linear)] for part in parts]
    assert all(len(some) == 3 * 4 for some in linears)
    floats = {name for name, parameter in parts[0].named_parameters() if parameter.dtype != FP8}
    assert not {name for name in floats if name.endswith(("qkv.weight", "output.weight", "down.weight"))}
    assert {"embedding.weight", "head.weight", "norm.weight"} <= floats
    down = torch.cat([values(part, "layers.1.mlp.down") for part in parts], dim=1)
    torch.testing.assert_close(down, whole["model.layers.1.mlp.down_proj.weight"], rtol=1 / 16, atol=1e-3)
    up = torch.cat([values(part, "layers.2.mlp.gate_up").chunk(2)[1] for part in parts])
    torch.testing.assert_close(up, whole["model.layers.2.mlp.up_proj.weight"], rtol=1 / 16, atol=1e-3)


@pytest.mark.parametrize("dummy", [False, True])
def test_logits_stay_near_those_of_the_checkpoint(tiny: Path, dummy: bool) -> None:
    tokens = torch.arange(40)
    with torch.inference_mode():
        exact, rounded = (
            model.logits(model(tokens, tokens, FullAttention(model.config.windows)))
            for model in (load(tiny, dummy=dummy), load(tiny, dummy=dummy, quantization="fp8"))
        )
    error = (rounded - exact).norm() / exact.norm()
    assert 0.003 < error < 0.25  # far less without rounding, and 0.87 with another row's scales


def test_a_width_that_no_kernel_takes_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path, intermediate_size=72)
    with pytest.raises(UserError, match=r"^--quantization fp8: .* 72 features in .*; allowed: multiples of 16$"):
        load(path, quantization="fp8")


WEIGHTS: dict[str, Any] = {"quantization": "fp8", "dtype": "bfloat16"}
CACHE: dict[str, Any] = {"kv_cache_dtype": "fp8"}


@pytest.mark.parametrize(
    ("options", "capability", "experts", "message"),
    [
        (WEIGHTS | {"device": "cpu"}, (9, 0), 0, "--quantization fp8: FP8 needs a GPU, .* --device cpu"),
        (CACHE | {"device": "cpu"}, (9, 0), 0, "--kv-cache-dtype fp8: FP8 needs a GPU, .* --device cpu"),
        (WEIGHTS, (8, 0), 0, "--quantization fp8: .* capability 8.9 or more; this one has 8.0"),
        (CACHE, (8, 6), 8, "--kv-cache-dtype fp8: .* capability 8.9 or more; this one has 8.6"),
        (WEIGHTS | {"dtype": "float16"}, (9, 0), 0, "--quantization fp8: needs --dtype bfloat16, not float16"),
        (WEIGHTS, (9, 0), 8, "--quantization fp8: .* mixture of experts of Qwen2ForCausalLM"),
        (WEIGHTS | CACHE, (8, 9), 0, None),
        (CACHE | {"dtype": "float16"}, (9, 0), 8, None),
        ({"device": "cpu"}, (0, 0), 8, None),
    ],
)
def test_who_may_ask_for_fp8(
    options: dict[str, Any],
    capability: tuple[int, int],
    experts: int,
    message: str | None,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    model = replace(ModelConfig.load(tiny), num_experts=experts)
    config = EngineConfig(model_path="", **({"device": "cuda"} | options))
    if message is None:
        check_fp8(config, model)
    else:
        with pytest.raises(UserError, match=f"^{message}$"):
            check_fp8(config, model)
