"""The least time that a machine could take: the bytes and operations that cannot be saved, at measured ceilings.

    floor = prefill FLOPs / FLOP/s
          + for each decode step, max(weight bytes / B/s, FLOPs / FLOP/s) + KV bytes read / B/s

FLOPs are those of the layers' matrices, two a parameter and token, and in decode steps those of the output matrix
too. Attention's are left out: they are a tenth more of the prefill of a 600-token prompt on a 0.6B model, and a
hundredth on a 14B one. So the floor is too low rather than too high. Under tensor parallelism weights, FLOPs and
KV are divided by the ranks, and communication counts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.models.config import ModelConfig


@dataclass(frozen=True)
class Ceilings:
    """What one GPU was measured to do. The defaults are an H200's (bf16)."""

    bytes_per_second: float = 4.25e12
    """Of a device copy, read and written."""
    flops_per_second: float = 800e12
    """Of a large matrix product."""


@dataclass(frozen=True)
class Dimensions:
    """What a model's speed depends on."""

    dense_parameters: int
    """Of all layers' matrices that every token goes through, router included."""
    expert_parameters: int
    """Of one expert, in all sparse layers."""
    num_experts: int
    experts_per_token: int
    head_parameters: int
    kv_values: int
    """Numbers that one token adds to the KV cache, in all layers."""

    @staticmethod
    def of(model: ModelConfig) -> Dimensions:
        hidden = model.hidden_size
        attention = 2 * hidden * model.head_dim * (model.num_heads + model.num_kv_heads)
        sparse = sum(model.is_sparse(layer) for layer in range(model.num_layers))
        return Dimensions(
            dense_parameters=model.num_layers * attention
            + (model.num_layers - sparse) * 3 * hidden * model.intermediate_size
            + sparse * hidden * model.num_experts,
            expert_parameters=sparse * 3 * hidden * model.moe_intermediate_size,
            num_experts=model.num_experts if sparse else 0,
            experts_per_token=model.experts_per_token,
            head_parameters=hidden * model.vocab_size,
            kv_values=2 * model.num_layers * model.num_kv_heads * model.head_dim,
        )

    @property
    def active_parameters(self) -> int:
        """Of the layers, those that one token is multiplied with."""
        return self.dense_parameters + self.experts_per_token * self.expert_parameters

    def read_parameters(self, tokens: int) -> float:
        """Of the layers, those that `tokens` together read: experts that none of them chooses are not read. The
        expectation under uniform choice.
        """
        if not self.num_experts:
            return self.dense_parameters
        missed = (1 - self.experts_per_token / self.num_experts) ** tokens
        return self.dense_parameters + self.num_experts * (1 - missed) * self.expert_parameters


@dataclass(frozen=True)
class Seconds:
    """A floor in its parts."""

    prefill: float
    weights: float
    """Of decode steps: reading the weights, or multiplying with them where that takes longer."""
    kv: float

    @property
    def total(self) -> float:
        return self.prefill + self.weights + self.kv


@dataclass(frozen=True)
class Floor:
    """The floor of one model on `ranks` GPUs."""

    dimensions: Dimensions
    ceilings: Ceilings = Ceilings()
    weight_bytes: int = 2
    """Of one number in the layers' matrices; the output matrix has `head_bytes`."""
    head_bytes: int = 2
    kv_bytes: int = 2
    ranks: int = 1

    @staticmethod
    def of(model: ModelConfig, dtype: str, options: Mapping[str, Any], ceilings: Ceilings) -> Floor:
        """`options` are arguments of `minisgl.llm.LLM`: its quantization and ranks count."""
        size = 4 if dtype == "float32" else 2
        return Floor(
            Dimensions.of(model),
            ceilings,
            weight_bytes=1 if "fp8" in str(options.get("quantization")) else size,
            head_bytes=size,
            kv_bytes=1 if "fp8" in str(options.get("kv_cache_dtype")) else size,
            ranks=int(options.get("tp_size", 1)),
        )

    def prefill(self, tokens: int) -> float:
        """Seconds to read `tokens` of prompts."""
        return self._multiply(2 * self.dimensions.active_parameters * tokens) / self.ranks

    def weights(self, batch: int) -> float:
        """Seconds of one decode step of `batch` requests, without the KV cache."""
        model = self.dimensions
        read = model.read_parameters(batch) * self.weight_bytes + model.head_parameters * self.head_bytes
        head = 2 * model.head_parameters * batch / self.ceilings.flops_per_second
        multiplied = self._multiply(2 * model.active_parameters * batch) + head
        return max(read / self.ceilings.bytes_per_second, multiplied) / self.ranks

    def _multiply(self, flops: float) -> float:
        """Seconds for the layers' products. Numbers of 8 bits take half as long as those of 16 (data sheet)."""
        return flops / self.ceilings.flops_per_second * min(self.weight_bytes, 2) / 2

    def kv(self, tokens: int) -> float:
        """Seconds to read the keys and values of `tokens`."""
        return self.dimensions.kv_values * self.kv_bytes * tokens / self.ceilings.bytes_per_second / self.ranks

    def generate(self, inputs: Sequence[int], outputs: Sequence[int]) -> Seconds:
        """Of requests given at once, with these lengths: prefill gives each its first token, and every further
        step one to each request that is not finished.
        """
        leaving = Counter(outputs)
        batch, weights = len(outputs) - leaving[1], 0.0
        for step in range(1, max(outputs)):
            weights += self.weights(batch)
            batch -= leaving[step + 1]
        read = sum(
            (length - 1) * start + length * (length - 1) // 2
            for start, length in zip(inputs, outputs, strict=True)
        )
        return Seconds(self.prefill(sum(inputs)), weights, self.kv(read))
