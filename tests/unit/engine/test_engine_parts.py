"""The stream, the pool and the memory that it is given."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from minisgl.core.config import EngineConfig
from minisgl.engine.memory import AUTOMATIC_CPU_BYTES, count_pages, free_bytes
from minisgl.engine.prefill_graphs import most_tokens
from minisgl.engine.scores import StepResult
from minisgl.engine.sizes import captured_sizes
from minisgl.engine.stream import Stream
from minisgl.kvcache.pool import KVPool, page_bytes
from minisgl.utils.errors import UserError

CPU = torch.device("cpu")
GIB = 1 << 30


def test_steps_run_in_order_without_the_launcher_waiting() -> None:
    stream = Stream(1)
    gate = threading.Event()
    ran: list[int] = []

    def step(number: int) -> StepResult:
        gate.wait()
        ran.append(number)
        return StepResult(torch.tensor([number, number * 10]))

    pending = [stream.launch(lambda number=number: step(number)) for number in range(5)]  # type: ignore[misc]
    assert ran == []
    gate.set()
    assert [p.tokens() for p in reversed(pending)] == [[n, n * 10] for n in reversed(range(5))]
    assert ran == [0, 1, 2, 3, 4]
    stream.close()


def test_a_step_that_raises_fails_those_after_it() -> None:
    stream = Stream(1)
    ran: list[int] = []

    def bad() -> StepResult:
        raise ValueError("no such page")

    def good() -> StepResult:
        ran.append(1)
        return StepResult(torch.tensor([1]))

    pending = [stream.launch(good), stream.launch(bad), stream.launch(good)]
    assert pending[0].tokens() == [1]
    for failed in pending[1:]:
        with pytest.raises(ValueError, match="no such page"):
            failed.tokens()
    assert ran == [1]
    stream.close()


@pytest.mark.parametrize(
    ("most", "needed", "others"),
    [
        (1, [1], []),
        (3, [1, 2, 3], []),
        (8, [1, 2, 4, 8], []),
        (20, [1, 2, 4, 8, 16, 20], []),
        (64, [1, 2, 4, 8, 16, 32, 64], [24, 40, 48, 56]),
    ],
)
def test_graphs_are_captured_for_sizes_up_to_the_largest(most: int, needed: list[int], others: list[int]) -> None:
    assert captured_sizes(most) == (needed, others)


def test_steps_build_no_autograd_graph() -> None:
    stream = Stream(1)
    assert stream.launch(lambda: StepResult(torch.tensor([torch.is_inference_mode_enabled()]))).tokens() == [True]
    stream.close()


def pages(config: EngineConfig, *, page: int, longest: int = 1 << 20, before: int | None = None) -> int:
    return count_pages(
        config,
        CPU,
        page_bytes=page,
        max_seq_len=longest,
        free_before=free_bytes(CPU) if before is None else before,
    )


def test_the_automatic_pool_is_bounded() -> None:
    config = EngineConfig(model_path="", max_running_requests=1000, page_size=16)
    page = 1 << 20
    assert 1 <= pages(config, page=page) <= AUTOMATIC_CPU_BYTES // page
    tiny = EngineConfig(model_path="", max_running_requests=3, page_size=16)
    assert pages(tiny, page=1024, longest=100) == 3 * 7


def test_the_memory_ratio_counts_the_weights() -> None:
    free = free_bytes(CPU)
    config = EngineConfig(model_path="", memory_ratio=0.5)
    # Of 2 * free, half may be used, and the weights took that.
    with pytest.raises(UserError, match="no memory is left for the KV pool"):
        pages(config, page=1 << 30, before=2 * free)


def test_more_pages_than_memory_are_refused() -> None:
    config = EngineConfig(model_path="", num_pages=1 << 30)
    with pytest.raises(UserError, match=r"--num-pages 1073741824: so many pages .* GiB are free"):
        pages(config, page=1 << 20)
    assert pages(EngineConfig(model_path="", num_pages=7), page=1 << 20) == 7


def test_a_container_limit_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")
    assert free_bytes(CPU, cgroup=tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU, cgroup=tmp_path) > 1_000_000


def test_an_older_container_limit_is_obeyed(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000000\n")
    (folder / "memory.usage_in_bytes").write_text("700000\n")
    (folder / "memory.stat").write_text("total_inactive_file 100000\n")
    assert free_bytes(CPU, cgroup=tmp_path) == 400_000


def pool(num_pages: int, dtype: torch.dtype = torch.float32) -> KVPool:
    return KVPool(num_layers=2, num_pages=num_pages, page_size=4, kv_heads=3, head_dim=8, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_starts_with_zeros_of_its_size(dtype: torch.dtype) -> None:
    layers = pool(5, dtype).layers
    assert all(layer.dtype == dtype and not layer.any() for layer in layers)
    size = sum(layer.numel() * layer.itemsize for layer in layers)
    assert size == 5 * page_bytes(2, 4, 3, 8, dtype)


def test_a_pool_may_keep_less_than_it_is_given() -> None:
    kept = KVPool(
        num_layers=2, num_pages=5, page_size=4, kv_heads=3, head_dim=8, dtype=torch.bfloat16, device=CPU,
        stored=torch.float8_e4m3fn,
    )  # fmt: skip
    assert (kept.dtype, kept.layers[0].dtype, kept.rounds) == (torch.bfloat16, torch.float8_e4m3fn, True)
    assert sum(layer.numel() * layer.itemsize for layer in kept.layers) == 2 * 5 * 4 * 2 * 3 * 8
    assert not pool(5).rounds


def test_a_pool_beyond_the_memory_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"KV pool of 1000000000000 pages takes .* GiB"):
        pool(10**12)


@pytest.mark.parametrize(
    ("weights", "tokens"),
    [(440_000_000, 2048), (1_700_000_000, 2048), (3_600_000_000, 1280), (13_200_000_000, 512), (1, 2048)],
)
def test_captured_steps_are_longer_for_smaller_models(weights: int, tokens: int) -> None:
    assert most_tokens(weights) == tokens
