"""What a checkpoint says of its architecture. Imports no torch, so that a launcher can ask in milliseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from minisgl.core.config import DType
from minisgl.core.sampling import SamplingParams
from minisgl.layers.rope import ROPE_TYPES, RopeConfig
from minisgl.models.fields import Fields, ModelError

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one architecture differs from Llama."""

    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    """Default of a configuration that does not say. None: hidden size over heads."""
    window: Literal["none", "all", "optional", "optional-all"] = "none"
    """Sliding windows: none; in every layer; where `use_sliding_window` and `layer_types` (or
    `max_window_layers`) say so; in every layer where `use_sliding_window` says so."""
    experts: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(window="all"),
    "Qwen2ForCausalLM": Family(qkv_bias=True, window="optional"),
    "Qwen3ForCausalLM": Family(qk_norm=True, head_dim=128, window="optional"),
    "Qwen3MoeForCausalLM": Family(qk_norm=True, window="optional-all", experts=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model's architecture, checked: what is here can be built."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position: int
    """Most tokens of one sequence, rope scaling included."""
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    """Of each layer: how many tokens a token attends to, itself included. None: all before it."""
    eos_ids: frozenset[int]
    """From generation_config.json and config.json."""
    dtype: DType
    """What the weights are stored in, as config.json says."""
    sampling: SamplingParams
    """What generation_config.json recommends, for requests that do not say."""
    num_experts: int = 0
    """0: no layer is a mixture of experts."""
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    """The chosen experts' weights are scaled to sum to 1."""
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def is_sparse(self, layer: int) -> bool:
        """Whether `layer` is a mixture of experts."""
        return (
            self.num_experts > 0
            and layer not in self.mlp_only_layers
            and (layer + 1) % self.decoder_sparse_step == 0
        )

    def check_tensor_parallel(self, size: int) -> None:
        """Raise `ModelError` unless the model can be split over `size` ranks.

        Attention heads and intermediate sizes must divide evenly. Key-value heads divide, or each is repeated on
        the same number of ranks. The vocabulary need not divide, but every rank must get some of it.
        """
        dense = any(not self.is_sparse(layer) for layer in range(self.num_layers))
        widths = [self.intermediate_size] if dense else []
        widths += [self.moe_intermediate_size] if self.num_experts else []

        def fits(n: int) -> bool:
            kv_fits = self.num_kv_heads % n == 0 or n % self.num_kv_heads == 0
            vocab_fits = -(-self.vocab_size // n) * (n - 1) < self.vocab_size
            return self.num_heads % n == 0 and kv_fits and vocab_fits and all(width % n == 0 for width in widths)

        if size < 1 or not fits(size):
            allowed = ", ".join(str(n) for n in range(1, self.num_heads + 1) if fits(n))
            raise ModelError(
                f"--tp {size}: {self.architecture} with {self.num_heads} attention heads, "
                f"{self.num_kv_heads} key-value heads, "
                f"intermediate size {' and '.join(map(str, widths))} and vocabulary {self.vocab_size} cannot be "
                f"split over {size} ranks; "
                f"allowed: {allowed}"
            )

    @staticmethod
    def load(path: Path) -> ModelConfig:
        """Read config.json, and generation_config.json if there is one, of the model directory `path`.

        Raises `ModelError`, one line with the file, the field, its value and what is allowed.
        """
        fields = Fields.read(path / "config.json")
        architecture = _architecture(fields)
        family = FAMILIES[architecture]
        _refuse_unsupported(fields)
        num_heads = fields.integer("num_attention_heads")
        num_kv_heads = fields.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise fields.error("num_key_value_heads", f"divisors of num_attention_heads, {num_heads}")
        hidden_size = fields.integer("hidden_size")
        head_dim = fields.integer("head_dim", family.head_dim or hidden_size // num_heads)
        if head_dim % 2:
            raise fields.error("head_dim", "even numbers")
        num_layers = fields.integer("num_hidden_layers")
        max_position = fields.integer("max_position_embeddings")
        rope, max_position = _rope(fields, max_position)
        dtype = fields.choice("dtype" if fields.get("dtype") else "torch_dtype", DTYPES, "float32")
        config = ModelConfig(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=fields.integer("intermediate_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=rope,
            max_position=max_position,
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            windows=_windows(fields, family, num_layers),
            eos_ids=_eos_ids(path, fields),
            dtype=cast(DType, dtype),
            sampling=_sampling(path),
        )
        return _with_experts(config, fields) if family.experts else config


def _architecture(fields: Fields) -> str:
    names = fields.get("architectures")
    if isinstance(names, list) and len(names) == 1 and names[0] in FAMILIES:
        return str(names[0])
    raise fields.error("architectures", "one of " + ", ".join(FAMILIES))


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse what would change the arithmetic and is not built."""
    quantization = fields.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{fields.file}: quantization_config says the weights are quantized ({method}); "
            f"allowed: weights in {', '.join(DTYPES)}"
        )
    fields.choice("hidden_act", ("silu",), "silu")
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, False):
            raise fields.error(name, "false")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "1")


def _rope(fields: Fields, max_position: int) -> tuple[RopeConfig, int]:
    """The rope of either spelling, `rope_parameters` or the older `rope_theta` with `rope_scaling`; and the most
    positions with it."""
    theta = fields.number("rope_theta", 10_000.0)
    scaling = fields.object("rope_scaling") or fields.object("rope_parameters")
    if scaling is None:
        return RopeConfig(theta=theta), max_position
    theta = scaling.number("rope_theta", theta)
    kind = scaling.choice("rope_type" if scaling.get("rope_type") else "type", ROPE_TYPES, "default")
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.error("partial_rotary_factor", "1")
    original = scaling.integer("original_max_position_embeddings", max_position)
    match kind:
        case "linear":
            return RopeConfig(type="linear", theta=theta, factor=scaling.number("factor")), max_position
        case "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if low >= high:
                raise scaling.error("low_freq_factor", f"numbers below high_freq_factor, {high:g}")
            rope = RopeConfig(
                type="llama3",
                theta=theta,
                factor=scaling.number("factor"),
                original_max_position=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
            return rope, max_position
        case "yarn":
            for name in ("mscale", "mscale_all_dim"):
                if scaling.get(name) is not None:
                    raise scaling.error(name, "null; say attention_factor")
            factor = scaling.number("factor", max_position / original)
            rope = RopeConfig(
                type="yarn",
                theta=theta,
                factor=factor,
                original_max_position=original,
                beta_fast=scaling.number("beta_fast", 32.0),
                beta_slow=scaling.number("beta_slow", 1.0),
                truncate=scaling.flag("truncate", True),
                attention_factor=scaling.number("attention_factor", 0.1 * math.log(max(factor, 1.0)) + 1.0),
            )
            # Checkpoints are shipped with the length before the extension and with the one after it.
            extended = scaling.get("original_max_position_embeddings") is not None
            return rope, max(max_position, int(original * factor)) if extended else max_position
    return RopeConfig(theta=theta), max_position


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    if family.window == "none" or (family.window != "all" and not fields.flag("use_sliding_window", False)):
        return (None,) * num_layers
    if "sliding_window" in fields.values and fields.values["sliding_window"] is None:
        return (None,) * num_layers
    window = fields.integer("sliding_window", 4096)
    if family.window != "optional":
        return (window,) * num_layers
    kinds = fields.get("layer_types")
    if kinds is None:
        full = fields.integer("max_window_layers", 28, minimum=0)
        return tuple(None if layer < full else window for layer in range(num_layers))
    table = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(kind in table for kind in kinds):
        raise fields.error("layer_types", f"a list of {num_layers} of {', '.join(table)}")
    return tuple(table[kind] for kind in kinds)


def _eos_ids(path: Path, fields: Fields) -> frozenset[int]:
    ids = set(fields.integers("eos_token_id"))
    generation = path / "generation_config.json"
    if generation.exists():
        ids.update(Fields.read(generation).integers("eos_token_id"))
    return frozenset(ids)


def _sampling(path: Path) -> SamplingParams:
    generation = path / "generation_config.json"
    fields = Fields.read(generation) if generation.exists() else Fields(generation, {})
    temperature = fields.number("temperature", 1.0, minimum=0)
    return SamplingParams(
        temperature=temperature if fields.flag("do_sample", True) else 0.0,
        top_k=fields.integer("top_k", 0, minimum=0),
        top_p=fields.number("top_p", 1.0, maximum=1),
        min_p=fields.number("min_p", 0.0, minimum=0, maximum=1),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
    )


def _with_experts(config: ModelConfig, fields: Fields) -> ModelConfig:
    name = "num_experts" if fields.get("num_experts") is not None else "num_local_experts"
    num_experts = fields.integer(name)
    experts_per_token = fields.integer("num_experts_per_tok")
    if experts_per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"integers up to {name}, {num_experts}")
    return replace(
        config,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        decoder_sparse_step=fields.integer("decoder_sparse_step", 1),
        mlp_only_layers=fields.integers("mlp_only_layers"),
    )
