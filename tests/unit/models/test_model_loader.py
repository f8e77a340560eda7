"""Weights reach their parameters, or the tensor at fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisgl.distributed import Communicator
from minisgl.layers.norm import RMSNorm
from minisgl.layers.weights import Piece
from minisgl.models import reading
from minisgl.models.checkpoint import inspect, read_header
from minisgl.models.fields import ModelError
from minisgl.models.loader import check_coverage, read_weights
from minisgl.models.mapping import pieces
from minisgl.models.reading import Filling, Source, chunks
from minisgl.models.transformer import Transformer
from support.full_attention import FullAttention
from support.loading import load_model
from support.tiny_models import make_tiny_model

CPU = torch.device("cpu")


def load(path: Path, *, dummy: bool = False) -> Transformer:
    config = inspect(path, skip_weights=dummy)
    return load_model(config, path, Communicator(), device=CPU, dtype=torch.float32, dummy=dummy)


def change(path: Path, name: str, tensor: Tensor | None) -> None:
    """Replace, add or (None) remove a tensor of the checkpoint."""
    tensors = load_file(path / "model.safetensors")
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("model.layers.1.mlp.experts.3.up_proj.weight", None, ["is missing"]),
        ("model.norm.weight", None, ["is missing"]),
        ("lm_head.weight", None, ["is missing"]),
        ("model.layers.2.self_attn.k_proj.weight", torch.zeros(16, 64), ["[16, 64]", "[32, 64]"]),
        ("model.embed_tokens.weight", torch.zeros(511, 64), ["[511, 64]", "[512, 64]"]),
        ("model.layers.0.self_attn.q_norm.weight", torch.zeros(1, 16), ["[1, 16]", "[16]"]),
        ("model.layers.0.self_attn.o_proj.bias", torch.zeros(64), ["unknown", "Qwen3MoeForCausalLM"]),
    ],
)
def test_a_tensor_at_fault_is_named(name: str, tensor: Tensor | None, words: list[str], tmp_path: Path) -> None:
    path = make_tiny_model("qwen3_moe", tmp_path)
    change(path, name, tensor)
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), name, *words]), message


def test_what_is_derived_may_be_in_the_checkpoint(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path, tie_word_embeddings=True)
    change(path, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(8))
    change(path, "lm_head.weight", torch.zeros(512, 64))  # of no effect: the configuration ties it
    model = load(path)
    with torch.inference_mode():
        logits = model.logits(model(torch.arange(4), torch.arange(4), FullAttention(model.config.windows)))
    assert logits.std() > 0.5


def test_a_checkpoint_of_another_type_is_converted(tmp_path: Path) -> None:
    path = make_tiny_model("qwen2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path / "model.safetensors")
    expected = tensors["model.embed_tokens.weight"].bfloat16().float()
    assert torch.equal(load(path).embedding.weight, expected)


def test_every_parameter_is_filled_exactly_once(tmp_path: Path) -> None:
    config = inspect(make_tiny_model("qwen3_moe", tmp_path, mlp_only_layers=[0]))
    model = Transformer(config, Communicator(), torch.float32)
    whole = list(pieces(model))
    check_coverage(whole, model)
    for broken in (whole[1:], whole[:-1], [*whole, whole[7]]):
        with pytest.raises(RuntimeError, match="exactly once"):
            check_coverage(broken, model)


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    path = make_tiny_model("qwen3_moe", tmp_path)
    (path / "model.safetensors").unlink()
    first, second = load(path, dummy=True), load(path, dummy=True)
    with torch.inference_mode():
        tokens = torch.arange(12)
        outputs = [
            model.logits(model(tokens, tokens, FullAttention(model.config.windows))) for model in (first, second)
        ]
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all() and outputs[0].std() > 0
    assert abs(first.embedding.weight.std() - 0.02) < 1e-3
    assert all((module.weight == 1).all() for module in first.modules() if isinstance(module, RMSNorm))


def test_a_split_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    with pytest.raises(ModelError, match=f"{config['num_attention_heads']} attention heads"):
        load_model(inspect(path), path, Communicator(0, 3), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("staging", [1, 700, 5000])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2), (3, 4)])
def test_a_part_is_the_same_through_any_staging_buffer(
    staging: int, rank: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model("qwen3_moe", tmp_path, mlp_only_layers=[1], max_shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    whole = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    monkeypatch.setattr(reading, "STAGING_BYTES", staging)
    model = Transformer(inspect(path), Communicator(rank, size), torch.float32)
    read_weights(model, path, CPU).wait()
    for piece in pieces(model):
        assert torch.equal(piece.target, whole[piece.name][piece.source or ...]), piece.name


@pytest.mark.parametrize(
    ("family", "overrides", "kept"),
    [
        ("llama", {"num_hidden_layers": 6}, [0, 1, 5]),
        ("llama", {"num_hidden_layers": 1}, [0]),
        ("qwen3_moe", {"num_hidden_layers": 7, "mlp_only_layers": [0, 2, 3, 5]}, [0, 1, 2, 4, 5, 6]),
    ],
)
def test_a_short_run_has_some_layers_of_each_kind(
    family: str, overrides: dict[str, Any], kept: list[int], tmp_path: Path
) -> None:
    model = Transformer(inspect(make_tiny_model(family, tmp_path, **overrides)), Communicator(), torch.float32)
    every = list(model.layers)
    with model.shortened():
        assert [every.index(layer) for layer in model.layers] == kept
    assert list(model.layers) == every


def test_a_buffer_holds_no_more_than_a_row_or_what_it_may(tmp_path: Path) -> None:
    model = Transformer(inspect(make_tiny_model("llama", tmp_path)), Communicator(1, 2), torch.float32)
    for piece in pieces(model):
        row = piece.shape[1] * 4 if len(piece.shape) > 1 else 4
        some = list(chunks(piece, Source(tmp_path, 1000, torch.float32), 700))
        assert all(chunk.size <= max(700, row) for chunk in some)
        assert sum(chunk.target.numel() for chunk in some) == piece.target.numel()


def test_the_first_fault_of_a_file_that_changes_ends_the_loading(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    file = path / "model.safetensors"
    entry = read_header(file)["model.embed_tokens.weight"]
    target = torch.zeros(entry.shape)
    piece = Piece("model.embed_tokens.weight", entry.shape, (), target)
    past_the_end = Source(file, file.stat().st_size - 100, torch.float32)
    with pytest.raises(ModelError, match="cut short"):
        Filling([(piece, past_the_end)] * 40, CPU).wait()
    assert (target == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "F8_E4M3"}, "131072 bytes of type F8_E4M3; allowed: .*, of F32, BF16, F16"),
        ({"dtype": "BF16"}, "131072 bytes of type BF16; allowed: as many as its shape takes"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, str], words: str, tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.embed_tokens.weight"].update(change)
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(ModelError, match=words):
        load(path)
