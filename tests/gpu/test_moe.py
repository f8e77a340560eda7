"""The kernels of a mixture of experts against `minisgl.layers.moe`, and Qwen3-MoE with and without CUDA graphs."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from minisgl.distributed import connect
from minisgl.engine.graphs import DecodeGraphs
from minisgl.kernel import kernels_for
from minisgl.layers.moe import MoE
from minisgl.llm import LLM, SamplingParams
from support.judge import Judge
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

CUDA = torch.device("cuda")
SHAPES = {
    "8 experts, 1 chosen": (8, 1, 128, 96),
    "60 experts, 4 chosen, odd sizes": (60, 4, 200, 88),
    "128 experts, 8 chosen": (128, 8, 512, 192),
}
"""Experts, experts per token, hidden and intermediate size."""


def make_layer(shape: tuple[int, int, int, int], dtype: torch.dtype, *, normalize: bool = True) -> MoE:
    experts, chosen, hidden, size = shape
    torch.manual_seed(sum(shape))
    with CUDA:
        layer = MoE(
            hidden,
            size,
            num_experts=experts,
            experts_per_token=chosen,
            norm_topk_prob=normalize,
            comm=connect(0, 1, "", CUDA),
            dtype=dtype,
        )
    for parameter in layer.parameters():
        parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    layer.pack()
    return layer


def normal(tokens: int, layer: MoE) -> Tensor:
    return torch.randn(tokens, layer.router.shape[1], device=CUDA).to(layer.gate_up.dtype)


def check(layer: MoE, x: Tensor) -> None:
    """Every token's result, a wrong expert's too, within a few roundings of the type."""
    result, expected = layer(x).float(), layer.mixture(x).float()
    error = (result - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < (1e-5 if x.dtype == torch.float32 else 2e-2), error.topk(min(len(x), 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_mixture(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for normalize in (True, False):
        layer = make_layer(shape, dtype, normalize=normalize)
        for tokens in (1, 3, 16, 17, 64, 257, 2000):
            check(layer, normal(tokens, layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_all_tokens_choose_the_same_expert(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    layer = make_layer(shape, dtype)
    last = shape[0] - 1
    layer.router[last, 0] = 64
    for tokens in (1, 40, 257, 2000):
        x = normal(tokens, layer)
        x[:, 0] = 1
        assert (layer.route(x)[1] == last).any(dim=1).all()
        check(layer, x)


def test_pairs_are_in_order_of_experts_and_then_of_tokens() -> None:
    chosen, rows = 8, 16
    torch.manual_seed(0)
    for tokens in (1, 5, 33, 700, 9000):
        logits = torch.randn(tokens, 128, device=CUDA)
        expected, experts = logits.softmax(dim=-1).topk(chosen, dim=-1)
        order, plan, weights = kernels_for(logits, "moe").route(logits, chosen, False, rows)
        torch.testing.assert_close(weights, expected)
        block = 0
        for expert, (stop, end) in enumerate(plan.T.tolist()):
            those = (experts == expert).any(dim=1).nonzero().flatten().tolist()
            assert (order[block * rows : end] // chosen).tolist() == those
            block += -(-len(those) // rows)
            assert block == stop


@torch.inference_mode()
def test_a_token_that_is_not_a_number_harms_no_other() -> None:
    layer = make_layer((60, 4, 200, 88), torch.bfloat16)
    x = normal(50, layer)
    clean = layer(x)
    x[7] = torch.nan
    result = layer(x)
    others = torch.arange(50, device=CUDA) != 7
    torch.testing.assert_close(result[others], clean[others], atol=2e-2, rtol=2e-2)
    assert result[7].isnan().all()


@pytest.mark.parametrize("tokens", [1, 48, 300, 3000])
@torch.inference_mode()
def test_the_same_tokens_give_the_same_bits_also_from_a_graph(tokens: int) -> None:
    layer = make_layer((128, 8, 512, 192), torch.bfloat16)
    x = normal(tokens, layer)
    first = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x)
    for _ in range(5):
        graph.replay()
        assert torch.equal(captured, first)
        assert torch.equal(layer(x), first)
    x.copy_(normal(tokens, layer))  # other experts, which the graph must find
    graph.replay()
    assert torch.equal(captured, layer(x))
    assert not torch.equal(captured, first)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    path = make_tiny_model(
        "qwen3_moe",
        tmp_path_factory.mktemp("models") / "qwen3_moe",
        hidden_size=512,
        head_dim=64,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=96,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        dtype="bfloat16",
    )
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path, Judge(path, misses=0.05)


@pytest.mark.skipif(find_spec("flashinfer") is None, reason="needs flashinfer-python")
@pytest.mark.parametrize("cache", ["radix", "naive"])
@pytest.mark.parametrize("graphs", [0, 20, 32], ids=["eager", "graphs, too small for some batches", "graphs"])
def test_greedy_text_is_right_and_repeats(
    case: tuple[Path, Judge], graphs: int, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, judge = case
    draw = random.Random(5)
    shared = [draw.randrange(512) for _ in range(60)]
    prompts = [
        shared[: (60, 30, 0)[i % 3]] + [draw.randrange(512) for _ in range(draw.randint(1, 50))] for i in range(32)
    ]
    each = [SamplingParams(temperature=0.0, max_tokens=4 + 3 * i % 29, ignore_eos=True) for i in range(32)]
    replayed: list[int] = []
    run = DecodeGraphs.run

    def counted(self: DecodeGraphs, count: int) -> None:
        replayed.append(count)
        run(self, count)

    monkeypatch.setattr(DecodeGraphs, "run", counted)
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=32, num_pages=2048, page_size=16,
        cache=cache, cuda_graph_max_batch=graphs,
    ) as llm:  # fmt: skip
        first, *others = [llm.generate(prompts, each) for _ in range(3)]
    assert max(replayed, default=0) == graphs
    for completions in (first, *others):
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in completions])
    # The first run fills the prefix cache; those after it do the same steps as each other, without a cache all do.
    same = others if cache == "radix" else [first, *others]
    texts = [[completion.token_ids for completion in completions] for completions in same]
    assert all(text == texts[0] for text in texts)
