"""What a configuration may say, and the one line that refuses the rest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minisgl.core.sampling import SamplingParams
from minisgl.layers.rope import RopeConfig
from minisgl.models.config import ModelConfig
from minisgl.models.fields import ModelError

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def load(directory: Path, generation: object = None, **fields: Any) -> ModelConfig:
    """The configuration of BASE with `fields`; one that is ... is left out."""
    values = {name: value for name, value in (BASE | fields).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.load(directory)


def test_sampling_is_what_the_generation_config_recommends(tmp_path: Path) -> None:
    assert load(tmp_path).sampling == SamplingParams()
    config = load(tmp_path, generation={"temperature": 0, "top_k": 20, "repetition_penalty": 1.05})
    assert config.sampling == SamplingParams(temperature=0.0, top_k=20, repetition_penalty=1.05)
    config = load(tmp_path, generation={"do_sample": False, "temperature": 0.6})
    assert config.sampling == SamplingParams(temperature=0.0)
    with pytest.raises(ModelError, match=r"generation_config.json: top_p is 1.5; allowed: numbers above 0 to 1"):
        load(tmp_path, generation={"top_p": 1.5})


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    config = load(tmp_path, num_key_value_heads=...)
    assert config.num_kv_heads == config.num_heads == 8
    assert config.head_dim == 8
    assert config.rms_norm_eps == 1e-6
    assert config.rope == RopeConfig()
    assert config.windows == (None,) * 4
    assert (config.tie_embeddings, config.qkv_bias, config.qk_norm) == (False, False, False)
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("generation", "eos", "expected"),
    [
        (None, 2, {2}),
        ({"eos_token_id": [7, 9]}, 2, {2, 7, 9}),
        ({"eos_token_id": 7}, [2, 3], {2, 3, 7}),
        ({"eos_token_id": None}, None, set()),
        ({}, ..., set()),
    ],
)
def test_every_end_of_sequence_id_counts(
    generation: object, eos: object, expected: set[int], tmp_path: Path
) -> None:
    assert load(tmp_path, generation, eos_token_id=eos).eos_ids == expected


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_either_name_of_the_weight_type(key: str, tmp_path: Path) -> None:
    assert load(tmp_path, **{key: "bfloat16"}).dtype == "bfloat16"


YARN = {"factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("fields", "rope", "max_position"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5), 512),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6), 512),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4}},
            RopeConfig(type="linear", theta=1e6, factor=4.0),
            512,
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": YARN | {"type": "yarn"}},
            RopeConfig(
                type="yarn",
                theta=1e6,
                factor=4.0,
                original_max_position=256,
                attention_factor=0.1 * math.log(4) + 1,
            ),
            1024,
        ),
        (
            {"rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 1e4, "attention_factor": 0.9}},
            RopeConfig(type="yarn", factor=4.0, original_max_position=256, attention_factor=0.9),
            1024,
        ),
    ],
)
def test_either_spelling_of_rope(
    fields: dict[str, Any], rope: RopeConfig, max_position: int, tmp_path: Path
) -> None:
    config = load(tmp_path, **fields)
    assert config.rope == rope
    assert config.max_position == max_position


def test_families_differ_as_they_should(tmp_path: Path) -> None:
    qwen2 = load(tmp_path, architectures=["Qwen2ForCausalLM"], sliding_window=64)
    assert qwen2.qkv_bias and not qwen2.qk_norm
    assert qwen2.windows == (None,) * 4  # use_sliding_window is not set
    qwen3 = load(
        tmp_path,
        architectures=["Qwen3ForCausalLM"],
        use_sliding_window=True,
        sliding_window=64,
        max_window_layers=3,
    )
    assert qwen3.qk_norm and not qwen3.qkv_bias
    assert qwen3.head_dim == 128
    assert qwen3.windows == (None, None, None, 64)
    assert load(tmp_path, architectures=["MistralForCausalLM"]).windows == (4096,) * 4
    assert load(tmp_path, architectures=["MistralForCausalLM"], sliding_window=None).windows == (None,) * 4
    moe = load(tmp_path, **MOE, mlp_only_layers=[1], decoder_sparse_step=2)
    assert [moe.is_sparse(layer) for layer in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["architectures", "GPT2LMHeadModel", "Qwen3MoeForCausalLM"]),
        ({"architectures": ...}, ["architectures is missing", "LlamaForCausalLM"]),
        ({"hidden_size": ...}, ["hidden_size is missing", "integers from 1"]),
        ({"hidden_size": "64"}, ["hidden_size", '"64"', "integers"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "from 1"]),
        ({"num_attention_heads": True}, ["num_attention_heads", "true"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divisors", "8"]),
        ({"head_dim": 7}, ["head_dim", "7", "even"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps", "-1", "above 0"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"attention_bias": True}, ["attention_bias", "true", "false"]),
        ({"mlp_bias": True}, ["mlp_bias", "true", "false"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "1"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "yes", "true, false"]),
        ({"torch_dtype": "float64"}, ["torch_dtype", "float64", "bfloat16"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>", "integer"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ["rope_scaling.type", "dynamic", "llama3, yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor is missing"]),
        ({"rope_scaling": [1]}, ["rope_scaling", "[1]", "an object"]),
        ({"rope_scaling": YARN | {"type": "yarn", "mscale": 1.0}}, ["rope_scaling.mscale", "attention_factor"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantization_config", "awq"]),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, ["(fp8)", "bfloat16"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["(compressed-tensors)", "bfloat16"]),
        (MOE | {"num_experts_per_tok": 9}, ["num_experts_per_tok", "9", "up to num_experts, 8"]),
        (MOE | {"num_experts": ...}, ["num_local_experts is missing"]),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, ["sliding_window", "0", "from 1"]),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "use_sliding_window": True,
                "layer_types": ["full_attention"],
            },
            ["layer_types", "4", "sliding_attention"],
        ),
    ],
)
def test_a_bad_field_is_refused_in_one_line(fields: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path, **fields)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(tmp_path / "config.json"), *words]), message


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("{", "not JSON"), ("[]", "an object is needed")]
)
def test_an_unreadable_file_is_refused_in_one_line(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=words) as caught:
        ModelConfig.load(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensor_parallel_sizes(tmp_path: Path) -> None:
    config = load(tmp_path)
    for size in (1, 2, 4, 8):
        config.check_tensor_parallel(size)
    for size in (0, 3, 5, 16):
        with pytest.raises(
            ModelError, match=r"8 attention heads, 2 key-value heads.*allowed: 1, 2, 4, 8"
        ) as caught:
            config.check_tensor_parallel(size)
        assert f"over {size} ranks" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8}, "1, 3"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 8}, "1, 2, 4, 12"),
        ({"intermediate_size": 98}, "1, 2"),
        ({"vocab_size": 5}, "1, 2"),
        (MOE | {"moe_intermediate_size": 12}, "1, 2, 4"),
        (MOE | {"intermediate_size": 97}, "1, 2, 4, 8"),
        (MOE | {"intermediate_size": 97, "mlp_only_layers": [0]}, "1"),
    ],
)
def test_what_limits_tensor_parallelism(fields: dict[str, Any], allowed: str, tmp_path: Path) -> None:
    config = load(tmp_path, **fields)
    with pytest.raises(ModelError) as caught:
        config.check_tensor_parallel(7)
    assert str(caught.value).endswith(f"allowed: {allowed}")


def test_a_launcher_checks_a_model_without_torch() -> None:
    program = (
        "import sys, minisgl.models.config, minisgl.models.checkpoint; "
        "print([name for name in ('torch', 'numpy', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"
